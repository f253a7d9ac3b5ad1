//! Printing replies in etcdctl's formats.

mod fields;
#[cfg(test)]
mod goldens;
mod json;
mod simple;
mod table;

use varve_client::Answer;
use varve_protocol::{
    HashKvResponse, MemberAddResponse, MemberListResponse, SpaceLine, StatusResponse,
};
use varve_types::{
    AlarmResponse, DeleteRangeResponse, Event, PutResponse, RangeResponse, ResponseHeader,
    TxnResponse,
};

use crate::failure::{EXIT_BAD_FEATURE, Failure};

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Simple { value_only: bool },
    Json,
    Fields,
    Table,
}

/// How one endpoint does.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) endpoint: String,
    pub(crate) took: String,
    /// Empty where it is healthy.
    pub(crate) error: String,
}

/// What a snapshot file holds; the names are those of etcdctl's JSON.
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotStatus {
    pub(crate) hash: u32,
    pub(crate) revision: i64,
    #[serde(rename = "totalKey")]
    pub(crate) total_keys: u64,
    pub(crate) total_size: u64,
}

/// An answer of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) endpoint: String,
    pub(crate) answer: Answer<T>,
}

/// News from a watch.
#[derive(Debug, Clone)]
pub(crate) struct WatchNews<'e> {
    pub(crate) header: ResponseHeader,
    pub(crate) events: &'e [Event],
    pub(crate) canceled: bool,
    pub(crate) compact_revision: i64,
}

/// What was done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberChange {
    Removed,
    Updated,
    Promoted,
}

/// Turns replies into what is written to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) hex: bool,
}

type Printed = Result<Vec<u8>, Failure>;

fn no_table() -> Printed {
    let message = "table not supported as output format";
    Err(Failure::new(EXIT_BAD_FEATURE, message))
}

impl Printer {
    fn simple(&self, value_only: bool) -> simple::Simple {
        simple::Simple {
            hex: self.hex,
            value_only,
        }
    }

    pub(crate) fn get(&self, answer: &Answer<RangeResponse>) -> Printed {
        Ok(match self.format {
            Format::Simple { value_only } => self.simple(value_only).get(&answer.body),
            Format::Json => json::get(answer),
            Format::Fields => fields::get(answer),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn put(&self, answer: &Answer<PutResponse>) -> Printed {
        Ok(match self.format {
            Format::Simple { value_only } => self.simple(value_only).put(&answer.body),
            Format::Json => json::put(answer),
            Format::Fields => fields::put(answer),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn delete(&self, answer: &Answer<DeleteRangeResponse>) -> Printed {
        Ok(match self.format {
            Format::Simple { value_only } => self.simple(value_only).delete(&answer.body),
            Format::Json => json::delete(answer),
            Format::Fields => fields::delete(answer),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn txn(&self, answer: &Answer<TxnResponse>) -> Printed {
        Ok(match self.format {
            Format::Simple { value_only } => self.simple(value_only).txn(&answer.body),
            Format::Json => json::txn(answer),
            Format::Fields => fields::txn(answer),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn watch(&self, news: &WatchNews<'_>) -> Printed {
        Ok(match self.format {
            Format::Simple { value_only } => self.simple(value_only).watch(news),
            Format::Json => json::watch(news),
            Format::Fields => fields::watch(news),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn member_list(&self, answer: &Answer<MemberListResponse>) -> Vec<u8> {
        match self.format {
            Format::Simple { .. } => simple::rows(&table::members(&answer.body)),
            Format::Json => json::members(answer, self.hex),
            Format::Fields => fields::members(answer),
            Format::Table => table::members(&answer.body).render(),
        }
    }

    /// Whether the format can show a change of the membership: better known before
    /// it is made.
    pub(crate) fn check_member_change(&self) -> Result<(), Failure> {
        match self.format {
            Format::Simple { .. } | Format::Json => Ok(()),
            Format::Fields => Err(Failure::new(
                EXIT_BAD_FEATURE,
                "fields not supported as output format",
            )),
            Format::Table => no_table().map(drop),
        }
    }

    /// A new member of this name, with what its configuration needs in the simple format.
    pub(crate) fn member_added(
        &self,
        answer: &Answer<MemberAddResponse>,
        name: &str,
        peer_urls: &str,
    ) -> Printed {
        self.check_member_change()?;
        Ok(match self.format {
            Format::Json => json::member_added(answer),
            _ => simple::member_added(answer, name, peer_urls),
        })
    }

    pub(crate) fn member_changed(
        &self,
        answer: &Answer<MemberListResponse>,
        id: u64,
        what: MemberChange,
    ) -> Printed {
        self.check_member_change()?;
        Ok(match self.format {
            Format::Json => json::members(answer, false),
            _ => simple::member_changed(&answer.header, id, what),
        })
    }

    pub(crate) fn leader_moved(&self, from: u64, to: u64) -> Printed {
        self.check_member_change()?;
        Ok(match self.format {
            // etcd gives this answer no header.
            Format::Json => b"{}\n".to_vec(),
            _ => format!("Leadership transferred from {from:x} to {to:x}\n").into_bytes(),
        })
    }

    /// What goes to standard output; unhealthy endpoints go to standard error in the simple
    /// format, see [`Printer::unhealthy`].
    pub(crate) fn health(&self, list: &[Health]) -> Vec<u8> {
        match self.format {
            Format::Simple { .. } => simple::healthy(list),
            Format::Json => json::health(list),
            Format::Fields => fields::health(list),
            Format::Table => table::health(list).render(),
        }
    }

    /// Lines for standard error.
    pub(crate) fn unhealthy(&self, list: &[Health]) -> Vec<String> {
        match self.format {
            Format::Simple { .. } => simple::unhealthy(list),
            _ => Vec::new(),
        }
    }

    pub(crate) fn status(&self, list: &[At<StatusResponse>]) -> Vec<u8> {
        match self.format {
            Format::Simple { .. } => simple::rows(&table::status(list)),
            Format::Json => json::status(list),
            Format::Fields => fields::status(list),
            Format::Table => table::status(list).render(),
        }
    }

    /// Whether the format can show what keys take.
    pub(crate) fn check_space(&self) -> Result<(), Failure> {
        match self.format {
            Format::Fields => Err(Failure::new(
                EXIT_BAD_FEATURE,
                "fields not supported as output format",
            )),
            _ => Ok(()),
        }
    }

    /// Whether lines can be printed as they come.
    pub(crate) fn is_simple(&self) -> bool {
        matches!(self.format, Format::Simple { .. })
    }

    pub(crate) fn space(&self, header: &ResponseHeader, lines: &[SpaceLine]) -> Vec<u8> {
        match self.format {
            Format::Json => json::space(header, lines),
            Format::Table => table::space(lines, self.hex).render(),
            _ => self.simple(false).space(lines),
        }
    }

    pub(crate) fn alarm(&self, answer: &Answer<AlarmResponse>) -> Printed {
        Ok(match self.format {
            Format::Simple { .. } => simple::alarm(&answer.body),
            Format::Json => json::alarm(answer),
            Format::Fields => fields::alarm(answer),
            Format::Table => return no_table(),
        })
    }

    pub(crate) fn hash_kv(&self, list: &[At<HashKvResponse>]) -> Vec<u8> {
        match self.format {
            Format::Simple { .. } => simple::rows(&table::hash_kv(list)),
            Format::Json => json::hash_kv(list),
            Format::Fields => fields::hash_kv(list),
            Format::Table => table::hash_kv(list).render(),
        }
    }

    pub(crate) fn snapshot_status(&self, status: &SnapshotStatus) -> Vec<u8> {
        match self.format {
            Format::Simple { .. } => simple::rows(&table::snapshot_status(status)),
            Format::Json => json::line(status),
            Format::Fields => fields::snapshot_status(status),
            Format::Table => table::snapshot_status(status).render(),
        }
    }
}
