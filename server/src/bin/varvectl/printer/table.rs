//! The table format, and the rows that the simple format shares with it.

use varve_protocol::{HashKvResponse, MemberListResponse, SpaceLine, StatusResponse};

use super::{At, Health, SnapshotStatus};
use crate::go_format::size;

/// Cells are wrapped at this width, between words.
const CELL_WIDTH: usize = 30;

/// A table: headings are centred, cells stand to the right.
pub(super) struct Table {
    headings: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

pub(super) fn members(list: &MemberListResponse) -> Table {
    let rows = list.members.iter().map(|member| {
        let state = match member.name.as_str() {
            "" => "unstarted",
            _ => "started",
        };
        vec![
            format!("{:x}", member.id),
            state.to_owned(),
            member.name.clone(),
            member.peer_urls.join(","),
            member.client_urls.join(","),
            member.is_learner.to_string(),
        ]
    });
    Table {
        headings: &[
            "ID",
            "STATUS",
            "NAME",
            "PEER ADDRS",
            "CLIENT ADDRS",
            "IS LEARNER",
        ],
        rows: rows.collect(),
    }
}

pub(super) fn health(list: &[Health]) -> Table {
    let rows = list.iter().map(|health| {
        vec![
            health.endpoint.clone(),
            health.error.is_empty().to_string(),
            health.took.clone(),
            health.error.clone(),
        ]
    });
    Table {
        headings: &["ENDPOINT", "HEALTH", "TOOK", "ERROR"],
        rows: rows.collect(),
    }
}

pub(super) fn status(list: &[At<StatusResponse>]) -> Table {
    let rows = list.iter().map(|At { endpoint, answer }| {
        let status = &answer.body;
        vec![
            endpoint.clone(),
            format!("{:x}", answer.header.member_id),
            status.version.clone(),
            size(u64::try_from(status.db_size).unwrap_or(0)),
            (status.leader == answer.header.member_id).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
        ]
    });
    Table {
        headings: &[
            "ENDPOINT",
            "ID",
            "VERSION",
            "DB SIZE",
            "IS LEADER",
            "IS LEARNER",
            "RAFT TERM",
            "RAFT INDEX",
            "RAFT APPLIED INDEX",
            "ERRORS",
        ],
        rows: rows.collect(),
    }
}

pub(super) fn hash_kv(list: &[At<HashKvResponse>]) -> Table {
    let rows = list
        .iter()
        .map(|At { endpoint, answer }| vec![endpoint.clone(), answer.body.hash32().to_string()]);
    Table {
        headings: &["ENDPOINT", "HASH"],
        rows: rows.collect(),
    }
}

pub(super) fn space(lines: &[SpaceLine], hex: bool) -> Table {
    let rows = lines.iter().map(|line| {
        let name = match hex {
            true => line.name.iter().map(|b| format!("\\x{b:02x}")).collect(),
            false => String::from_utf8_lossy(&line.name).into_owned(),
        };
        vec![name, line.keys.to_string(), line.bytes.to_string()]
    });
    Table {
        headings: &["NAME", "KEYS", "BYTES"],
        rows: rows.collect(),
    }
}

pub(super) fn snapshot_status(status: &SnapshotStatus) -> Table {
    Table {
        headings: &["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"],
        rows: vec![vec![
            format!("{:x}", status.hash),
            status.revision.to_string(),
            status.total_keys.to_string(),
            size(status.total_size),
        ]],
    }
}

impl Table {
    pub(super) fn render(&self) -> Vec<u8> {
        let rows: Vec<Vec<Vec<String>>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| wrap(cell)).collect())
            .collect();
        let widths: Vec<usize> = self
            .headings
            .iter()
            .enumerate()
            .map(|(column, heading)| {
                let cells = rows.iter().flat_map(|row| row[column].iter());
                let widest = cells.map(|line| width(line)).max().unwrap_or(0);
                widest.max(heading.len())
            })
            .collect();
        let rule: String = widths
            .iter()
            .map(|width| format!("+{}", "-".repeat(width + 2)))
            .chain(["+\n".to_owned()])
            .collect();
        let mut out = rule.clone();
        for (heading, width) in self.headings.iter().zip(&widths) {
            let left = (width - heading.len()) / 2;
            let right = width - heading.len() - left;
            out.push_str(&format!(
                "| {}{heading}{} ",
                " ".repeat(left),
                " ".repeat(right)
            ));
        }
        out.push_str("|\n");
        out.push_str(&rule);
        for row in &rows {
            let height = row.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                for (cell, column) in row.iter().zip(&widths) {
                    let text = cell.get(line).map_or("", String::as_str);
                    out.push_str(&format!("| {}{text} ", " ".repeat(column - width(text))));
                }
                out.push_str("|\n");
            }
        }
        out.push_str(&rule);
        out.into_bytes()
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Breaks a text between words into lines of up to [`CELL_WIDTH`] (or its longest word), as
/// evenly as can be: the sum of the squares of what the lines but the last fall short is least.
fn wrap(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let longest = words.iter().map(|word| width(word)).max().unwrap_or(0);
    let limit = CELL_WIDTH.max(longest);
    // For the words from `i` on: what it costs to set them, and where the first line ends.
    let mut best = vec![(0usize, words.len()); words.len() + 1];
    for i in (0..words.len()).rev() {
        let mut length = 0;
        let mut choice = (usize::MAX, words.len());
        for (j, word) in words.iter().enumerate().skip(i) {
            length += width(word) + usize::from(j > i);
            if length > limit {
                break;
            }
            let cost = match j + 1 == words.len() {
                true => 0,
                false => (limit - length).pow(2) + best[j + 1].0,
            };
            if cost < choice.0 {
                choice = (cost, j + 1);
            }
        }
        best[i] = choice;
    }
    let mut lines = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let end = best[start].1;
        lines.push(words[start..end].join(" "));
        start = end;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health_of(endpoint: &str, took: &str, error: &str) -> Health {
        Health {
            endpoint: endpoint.to_owned(),
            took: took.to_owned(),
            error: error.to_owned(),
        }
    }

    #[test]
    fn as_etcdctl_prints() {
        let list = [
            health_of("127.0.0.1:23790", "4.305221ms", ""),
            health_of("127.0.0.1:1", "1.001298161s", "context deadline exceeded"),
        ];
        let expected = "\
+-----------------+--------+--------------+---------------------------+
|    ENDPOINT     | HEALTH |     TOOK     |           ERROR           |
+-----------------+--------+--------------+---------------------------+
| 127.0.0.1:23790 |   true |   4.305221ms |                           |
|     127.0.0.1:1 |  false | 1.001298161s | context deadline exceeded |
+-----------------+--------+--------------+---------------------------+
";
        assert_eq!(String::from_utf8(health(&list).render()).unwrap(), expected);
    }

    #[test]
    fn empty() {
        let expected = "\
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
| ENDPOINT | ID | VERSION | DB SIZE | IS LEADER | IS LEARNER | RAFT TERM | RAFT INDEX | RAFT APPLIED INDEX | ERRORS |
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
";
        assert_eq!(String::from_utf8(status(&[]).render()).unwrap(), expected);
    }

    #[test]
    fn long_cells_wrap() {
        assert_eq!(wrap(""), Vec::<String>::new());
        assert_eq!(
            wrap("memberID:1 alarm:NOSPACE , etcdserver: no leader"),
            ["memberID:1 alarm:NOSPACE ,", "etcdserver: no leader"]
        );
        assert_eq!(wrap(&"x".repeat(50)), ["x".repeat(50)]);
    }
}
