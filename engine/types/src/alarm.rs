//! Alarms: what is so wrong with a member that the cluster has to know.

use crate::codec::{DecodeError, Reader, put_count};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AlarmKind {
    /// A member's store is full.
    NoSpace = 1,
    /// A member's state differs from the others'.
    Corrupt = 2,
}

impl AlarmKind {
    /// etcd's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }

    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::NoSpace, Self::Corrupt]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// An alarm, and of which member it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// The member; 0 where nobody knows which of them it is.
    pub member_id: u64,
    /// What is wrong with it.
    pub kind: AlarmKind,
}

impl Alarm {
    /// Bytes of one encoding.
    pub const BYTES: usize = 9;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.member_id.to_le_bytes());
        out.push(self.kind as u8);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let member_id = reader.u64("member of an alarm")?;
        let number = reader.u8("kind of an alarm")?;
        match AlarmKind::from_number(number) {
            Some(kind) => Ok(Self { member_id, kind }),
            None => Err(reader.error("kind of an alarm")),
        }
    }
}

/// What to do about alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AlarmAction {
    /// List them.
    Get = 0,
    /// Raise one.
    Activate = 1,
    /// End them.
    Deactivate = 2,
}

/// A request about alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlarmRequest {
    /// What to do.
    pub action: AlarmAction,
    /// The member; to list and to end, 0 is any.
    pub member_id: u64,
    /// Which alarm; to list and to end, `None` is any. Nothing else can be raised than
    /// one of them.
    pub kind: Option<AlarmKind>,
}

impl AlarmRequest {
    /// Whether it is about `alarm`.
    pub fn matches(&self, alarm: &Alarm) -> bool {
        (self.member_id == 0 || self.member_id == alarm.member_id)
            && self.kind.is_none_or(|kind| kind == alarm.kind)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.action as u8);
        out.extend_from_slice(&self.member_id.to_le_bytes());
        out.push(self.kind.map_or(0, |kind| kind as u8));
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let action = match reader.u8("alarm action")? {
            0 => AlarmAction::Get,
            1 => AlarmAction::Activate,
            2 => AlarmAction::Deactivate,
            _ => return Err(reader.error("alarm action")),
        };
        let member_id = reader.u64("member of an alarm")?;
        let kind = match (reader.u8("kind of an alarm")?, action) {
            (0, AlarmAction::Get | AlarmAction::Deactivate) => None,
            (number, _) => Some(
                AlarmKind::from_number(number).ok_or_else(|| reader.error("kind of an alarm"))?,
            ),
        };
        Ok(Self {
            action,
            member_id,
            kind,
        })
    }
}

/// Alarms: the ones that were asked for, raised or ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlarmResponse {
    /// By member, then kind.
    pub alarms: Vec<Alarm>,
}

impl AlarmResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.alarms.len());
        for alarm in &self.alarms {
            alarm.encode(out);
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count(Alarm::BYTES, "alarm count")?;
        let alarms = (0..count)
            .map(|_| Alarm::decode(reader))
            .collect::<Result<_, _>>()?;
        Ok(Self { alarms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_come_back() {
        let corrupt = Alarm {
            member_id: 7,
            kind: AlarmKind::Corrupt,
        };
        let list = AlarmResponse {
            alarms: vec![corrupt],
        };
        let mut bytes = Vec::new();
        list.encode(&mut bytes);
        assert_eq!(bytes, b"\x01\0\0\0\x07\0\0\0\0\0\0\0\x02");
        assert_eq!(AlarmResponse::decode(&mut Reader::new(&bytes)), Ok(list));
        bytes[12] = 3;
        assert!(AlarmResponse::decode(&mut Reader::new(&bytes)).is_err());

        let disarm = AlarmRequest {
            action: AlarmAction::Deactivate,
            member_id: 0,
            kind: None,
        };
        let mut bytes = Vec::new();
        disarm.encode(&mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(AlarmRequest::decode(&mut Reader::new(&bytes)), Ok(disarm));
        assert!(disarm.matches(&corrupt));
        assert!(
            !AlarmRequest {
                member_id: 8,
                ..disarm
            }
            .matches(&corrupt)
        );
        // What is raised has a name.
        bytes[0] = 1;
        assert!(AlarmRequest::decode(&mut Reader::new(&bytes)).is_err());
    }
}
