//! What a member asks others before it has a replica: over HTTP, at their peer URLs.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use varve_raft::{Member, Membership};

use crate::config::Url;

/// How long one member may take to tell who the members are.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long one may take to have the membership changed: longer than it waits itself.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// No list of members is longer.
const MAX_BYTES: u64 = 1 << 20;

/// What a member says of its cluster.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) url: String,
    pub(crate) cluster_id: u64,
    pub(crate) members: Membership,
    pub(crate) standing: Standing,
    /// It has found damage in its own files, and still serves.
    pub(crate) is_damaged: bool,
}

/// The header that says so.
pub(crate) const DAMAGED_HEADER: &str = "x-varve-damaged";

/// How much a member knows that tells who the members are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing but the bootstrap: it has taken part in nothing yet.
    Bare,
    /// All that was committed before it was asked, as a linearizable read has shown.
    Confirmed,
    /// What it has applied; there may be more.
    Unconfirmed,
}

impl Standing {
    /// The header in which it travels.
    pub(crate) const HEADER: &str = "x-varve-members";

    /// Its name there.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Confirmed => "confirmed",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// What is answered at a peer URL.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// By a member that runs.
    Runs(Told),
    /// By one that is damaged itself, and will have this id.
    Heals(u64),
    /// By one that has no data directory yet.
    IsNew,
}

/// A request to be put in the place of a damaged member, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ReplaceRequest {
    /// In hex, as all ids here: numbers over 2^53 do not survive every JSON reader.
    pub(crate) cluster_id: String,
    pub(crate) damaged_id: String,
    pub(crate) fresh_id: String,
    pub(crate) name: String,
    #[serde(rename = "peerURLs")]
    pub(crate) peer_urls: Vec<String>,
}

/// Why a member that was asked to be put in a damaged one's place did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReplaced {
    /// It may, later.
    Later(String),
    /// It will not.
    Refused(String),
    /// The damaged member has been removed by somebody else.
    Gone(String),
}

/// What is known at a peer URL.
pub(crate) async fn members(url: &str) -> Result<Answer, String> {
    ask(url, "GET /members").await
}

/// The same, with a linearizable read before it if there can be one.
pub(crate) async fn confirmed_members(url: &str) -> Result<Answer, String> {
    ask(url, "GET /members?confirm=true").await
}

/// The same, and has who answers promise to stay while member `id` leaves: it confirms
/// nothing otherwise.
pub(crate) async fn promise_to_stay(url: &str, id: u64) -> Result<Answer, String> {
    ask(url, &format!("GET /members?confirm=true&leaves={id:x}")).await
}

async fn ask(url: &str, request: &str) -> Result<Answer, String> {
    let answer = timeout(TIMEOUT, exchange(url, request, "")).await;
    let answer = answer.map_err(|_| format!("no answer within {TIMEOUT:?}"))??;
    parse(url, &answer).ok_or_else(|| "no list of members".to_owned())
}

/// Has the cluster put this member in the place of a damaged one; the members after it.
pub(crate) async fn replace(url: &str, request: &ReplaceRequest) -> Result<Told, NotReplaced> {
    let body = serde_json::to_string(request).unwrap_or_default();
    let asked = exchange(url, "POST /members/replace", &body);
    let answer = match timeout(CHANGE_TIMEOUT, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(NotReplaced::Later(error)),
        Err(_) => {
            let text = format!("no answer within {CHANGE_TIMEOUT:?}");
            return Err(NotReplaced::Later(text));
        }
    };
    if let Some(Answer::Runs(told)) = parse(url, &answer) {
        return Ok(told);
    }
    let (status, body) = status_and_body(&answer).unwrap_or((0, ""));
    let message = serde_json::from_str(body).map(|body: Message| body.message);
    let message = message.unwrap_or_else(|_| format!("it answers with status {status}"));
    Err(match status {
        410 => NotReplaced::Gone(message),
        400..=499 => NotReplaced::Refused(message),
        _ => NotReplaced::Later(message),
    })
}

async fn exchange(url: &str, request: &str, body: &str) -> Result<String, String> {
    let authority = Url::parse(url)?.authority();
    let length = body.len();
    let exchange = async {
        let mut stream = TcpStream::connect(&authority).await?;
        // 1.0, so that the answer comes in one piece and ends with the connection.
        let request = format!(
            "{request} HTTP/1.0\r\nHost: {authority}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    String::from_utf8(answer).map_err(|error| error.to_string())
}

fn status_and_body(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}

/// Cluster id and members out of an answer, or that the one asked is being healed.
fn parse(url: &str, answer: &str) -> Option<Answer> {
    let (status, body) = status_and_body(answer)?;
    if status == 503 {
        let body: Message = serde_json::from_str(body).ok()?;
        if body.new_id.is_some() {
            return Some(Answer::IsNew);
        }
        return u64::from_str_radix(&body.fresh_id?, 16)
            .ok()
            .map(Answer::Heals);
    }
    if status != 200 {
        return None;
    }
    let (head, _) = answer.split_once("\r\n\r\n")?;
    let header = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let id = header("x-etcd-cluster-id")?;
    let standing = header(Standing::HEADER).unwrap_or_default();
    let known = [Standing::Bare, Standing::Confirmed];
    let standing = known.into_iter().find(|known| known.name() == standing);
    let list: Vec<MemberJson> = serde_json::from_str(body).ok()?;
    let mut members = Membership::default();
    for mut member in list {
        member.peer_urls.sort_unstable();
        members.insert(Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: member.is_learner,
            ..Member::default()
        });
    }
    Some(Answer::Runs(Told {
        url: url.to_owned(),
        cluster_id: u64::from_str_radix(id, 16).ok()?,
        members,
        standing: standing.unwrap_or(Standing::Unconfirmed),
        is_damaged: header(DAMAGED_HEADER).is_some(),
    }))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    message: String,
    fresh_id: Option<String>,
    new_id: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(default)]
#[derive(Default)]
struct MemberJson {
    id: u64,
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(rename = "isLearner")]
    is_learner: bool,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: cdf818194e3a8c32\r\n\r\n[{\"id\":7,\
        \"peerURLs\":[\"http://h:2\",\"http://h:1\"],\"name\":\"a\",\"clientURLs\":[\"http://h:3\"]},\
        {\"id\":18446744073709551615,\"peerURLs\":[\"http://i:1\"],\"isLearner\":true}]\n";

    pub(crate) fn told() -> Told {
        match parse("http://h:1", ANSWER) {
            Some(Answer::Runs(told)) => told,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lists_are_read() {
        let Told {
            cluster_id,
            members,
            ..
        } = told();
        assert_eq!(cluster_id, 0xcdf8_1819_4e3a_8c32);
        assert_eq!(
            members.get(7).unwrap().peer_urls,
            ["http://h:1", "http://h:2"]
        );
        assert!(members.get(u64::MAX).unwrap().is_learner);
        for bad in ["", "HTTP/1.1 404 x\r\n\r\n[]", "HTTP/1.1 200 OK\r\n\r\n[]"] {
            assert!(parse("http://h:1", bad).is_none());
        }
    }

    #[test]
    fn what_a_member_knows_is_told_beside_the_list() {
        assert_eq!(told().standing, Standing::Unconfirmed);
        for standing in [Standing::Bare, Standing::Confirmed] {
            let header = format!("OK\r\nX-Varve-Members: {}\r\n", standing.name());
            let answer = ANSWER.replacen("OK\r\n", &header, 1);
            let Some(Answer::Runs(told)) = parse("http://h:1", &answer) else {
                panic!("{answer}")
            };
            assert_eq!(told.standing, standing);
        }
    }

    #[test]
    fn a_member_that_heals_says_who_it_will_be() {
        let answer = "HTTP/1.1 503 x\r\n\r\n{\"message\":\"m\",\"freshId\":\"ffffffffffffffff\"}";
        assert!(matches!(
            parse("http://h:1", answer),
            Some(Answer::Heals(u64::MAX))
        ));
        for bad in ["{\"message\":\"m\"}", "{\"freshId\":\"1\"}", "[]"] {
            assert!(parse("http://h:1", &format!("HTTP/1.1 503 x\r\n\r\n{bad}")).is_none());
        }
    }
}
