//! Outputs recorded from etcdctl 3.4.23 against a real etcd, held byte for byte.

use varve_client::Answer;
use varve_protocol::{
    HashKvResponse, Member, MemberAddResponse, MemberListResponse, StatusResponse,
};
use varve_types::{
    DeleteRangeResponse, Event, EventKind, KeyValue, PutResponse, RangeResponse, ResponseHeader,
    ResponseOp, TxnResponse,
};

use super::{At, Format, Health, MemberChange, Printer, WatchNews};
use crate::failure::Failure;

const SIMPLE: Printer = Printer {
    format: Format::Simple { value_only: false },
    hex: false,
};
const HEX: Printer = Printer {
    hex: true,
    ..SIMPLE
};
const JSON: Printer = Printer {
    format: Format::Json,
    hex: false,
};
const FIELDS: Printer = Printer {
    format: Format::Fields,
    hex: false,
};
const TABLE: Printer = Printer {
    format: Format::Table,
    hex: false,
};

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        cluster_id: 324_952_591_200_643_719,
        member_id: 3_319_814_642_761_637_952,
        revision,
        raft_term: 2,
    }
}

fn answer<T>(revision: i64, body: T) -> Answer<T> {
    Answer {
        header: header(revision),
        body,
    }
}

fn kv(key: &str, value: &str, create: i64, modified: i64, version: i64) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: create,
        mod_revision: modified,
        version,
        lease: 0,
    }
}

fn text(printed: Result<Vec<u8>, Failure>) -> String {
    String::from_utf8(printed.unwrap()).unwrap()
}

fn found() -> Answer<RangeResponse> {
    answer(
        3,
        RangeResponse {
            kvs: vec![kv("foo", "bar2", 2, 3, 2)],
            more: false,
            count: 1,
        },
    )
}

#[test]
fn get() {
    assert_eq!(text(SIMPLE.get(&found())), "foo\nbar2\n");
    assert_eq!(
        text(HEX.get(&found())),
        "\\x66\\x6f\\x6f\n\\x62\\x61\\x72\\x32\n"
    );
    assert_eq!(
        text(JSON.get(&found())),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":3,"raft_term":2},"kvs":[{"key":"Zm9v","create_revision":2,"mod_revision":3,"version":2,"value":"YmFyMg=="}],"count":1}
"#
    );
    assert_eq!(
        text(FIELDS.get(&found())),
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 3
"RaftTerm" : 2
"Key" : "foo"
"CreateRevision" : 2
"ModRevision" : 3
"Version" : 2
"Value" : "bar2"
"Lease" : 0
"More" : false
"Count" : 1
"#
    );
    let failure = TABLE.get(&found()).unwrap_err();
    assert_eq!(failure.code, 4);
    assert_eq!(
        failure.message.as_deref(),
        Some("table not supported as output format")
    );
    let nothing = answer(3, RangeResponse::default());
    assert_eq!(text(SIMPLE.get(&nothing)), "");
    assert_eq!(
        text(JSON.get(&nothing)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":3,"raft_term":2}}
"#
    );
    let odd = KeyValue {
        key: b"a\"b\\c\n\t\x01\xff\xc3\xa9".to_vec(),
        ..kv("", "", 22, 22, 1)
    };
    let more = answer(
        22,
        RangeResponse {
            kvs: vec![odd],
            more: true,
            count: 7,
        },
    );
    assert_eq!(
        text(JSON.get(&more)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":22,"raft_term":2},"kvs":[{"key":"YSJiXGMKCQH/w6k=","create_revision":22,"mod_revision":22,"version":1}],"more":true,"count":7}
"#
    );
}

#[test]
fn put_and_delete() {
    let put = answer(
        5,
        PutResponse {
            prev_kv: Some(kv("foo", "bar3", 2, 4, 3)),
        },
    );
    assert_eq!(text(SIMPLE.put(&put)), "OK\nfoo\nbar3\n");
    assert_eq!(
        text(JSON.put(&put)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":5,"raft_term":2},"prev_kv":{"key":"Zm9v","create_revision":2,"mod_revision":4,"version":3,"value":"YmFyMw=="}}
"#
    );
    let delete = answer(
        10,
        DeleteRangeResponse {
            deleted: 1,
            prev_kvs: vec![kv("foo", "b", 9, 9, 1)],
        },
    );
    assert_eq!(text(SIMPLE.delete(&delete)), "1\nfoo\nb\n");
    assert_eq!(
        text(FIELDS.delete(&delete)),
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 10
"RaftTerm" : 2
"Deleted" : 1
"PrevKey" : "foo"
"PrevCreateRevision" : 9
"PrevModRevision" : 9
"PrevVersion" : 1
"PrevValue" : "b"
"PrevLease" : 0
"#
    );
    let nothing = answer(10, DeleteRangeResponse::default());
    assert_eq!(text(SIMPLE.delete(&nothing)), "0\n");
    assert_eq!(
        text(JSON.delete(&nothing)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":10,"raft_term":2}}
"#
    );
}

fn txn_answer() -> Answer<TxnResponse> {
    answer(
        25,
        TxnResponse {
            succeeded: true,
            responses: vec![
                ResponseOp::Put(PutResponse {
                    prev_kv: Some(kv("c", "x y", 13, 13, 1)),
                }),
                ResponseOp::Range(RangeResponse {
                    kvs: vec![kv("k", "v", 11, 11, 1)],
                    more: false,
                    count: 1,
                }),
                ResponseOp::Range(RangeResponse::default()),
                ResponseOp::DeleteRange(DeleteRangeResponse {
                    deleted: 1,
                    prev_kvs: vec![kv("a", "b", 14, 24, 3)],
                }),
                ResponseOp::Put(PutResponse::default()),
            ],
        },
    )
}

#[test]
fn txn() {
    assert_eq!(
        text(JSON.txn(&txn_answer())),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":25,"raft_term":2},"succeeded":true,"responses":[{"Response":{"ResponsePut":{"header":{"revision":25},"prev_kv":{"key":"Yw==","create_revision":13,"mod_revision":13,"version":1,"value":"eCB5"}}}},{"Response":{"ResponseRange":{"header":{"revision":25},"kvs":[{"key":"aw==","create_revision":11,"mod_revision":11,"version":1,"value":"dg=="}],"count":1}}},{"Response":{"ResponseRange":{"header":{"revision":25}}}},{"Response":{"ResponseDeleteRange":{"header":{"revision":25},"deleted":1,"prev_kvs":[{"key":"YQ==","create_revision":14,"mod_revision":24,"version":3,"value":"Yg=="}]}}},{"Response":{"ResponsePut":{"header":{"revision":25}}}}]}
"#
    );
    assert_eq!(
        text(SIMPLE.txn(&txn_answer())),
        "SUCCESS\n\nOK\nc\nx y\n\nk\nv\n\n\n1\na\nb\n\nOK\n"
    );
    let fields = text(FIELDS.txn(&txn_answer()));
    assert!(fields.starts_with(
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 25
"RaftTerm" : 2
"Succeeded" : true
"ClusterID" : 0
"MemberID" : 0
"Revision" : 25
"RaftTerm" : 0
"PrevKey" : "c"
"#
    ));
    let failed = answer(13, TxnResponse::default());
    assert_eq!(text(SIMPLE.txn(&failed)), "FAILURE\n");
    assert_eq!(
        text(JSON.txn(&failed)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":13,"raft_term":2}}
"#
    );
}

#[test]
fn watch() {
    let events = [
        Event {
            kind: EventKind::Put,
            kv: kv("w", "2", 19, 20, 2),
            prev_kv: Some(kv("w", "1", 19, 19, 1)),
        },
        Event {
            kind: EventKind::Delete,
            kv: kv("w", "", 0, 21, 0),
            prev_kv: None,
        },
    ];
    let news = WatchNews {
        header: header(21),
        events: &events,
        canceled: false,
        compact_revision: 0,
    };
    assert_eq!(text(SIMPLE.watch(&news)), "PUT\nw\n1\nw\n2\nDELETE\nw\n\n");
    assert_eq!(
        text(JSON.watch(&news)),
        r#"{"Header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":21,"raft_term":2},"Events":[{"kv":{"key":"dw==","create_revision":19,"mod_revision":20,"version":2,"value":"Mg=="},"prev_kv":{"key":"dw==","create_revision":19,"mod_revision":19,"version":1,"value":"MQ=="}},{"type":1,"kv":{"key":"dw==","mod_revision":21}}],"CompactRevision":0,"Canceled":false,"Created":false}
"#
    );
    assert!(text(FIELDS.watch(&news)).contains(
        "\"Type\" : DELETE\n\"Key\" : \"w\"\n\"CreateRevision\" : 0\n\"ModRevision\" : 21\n"
    ));
    let canceled = WatchNews {
        header: header(0),
        events: &[],
        canceled: true,
        compact_revision: 3,
    };
    assert_eq!(
        text(JSON.watch(&canceled)),
        r#"{"Header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"raft_term":2},"Events":[],"CompactRevision":3,"Canceled":true,"Created":false}
"#
    );
    assert_eq!(text(SIMPLE.watch(&canceled)), "");
}

fn print(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn status() {
    let list = [At {
        endpoint: "127.0.0.1:23790".to_owned(),
        answer: answer(
            10,
            StatusResponse {
                version: "3.4.23".to_owned(),
                db_size: 20_480,
                db_size_in_use: 16_384,
                leader: 3_319_814_642_761_637_952,
                raft_index: 16,
                raft_term: 2,
                raft_applied_index: 16,
                ..StatusResponse::default()
            },
        ),
    }];
    assert_eq!(
        print(SIMPLE.status(&list)),
        "127.0.0.1:23790, 2e1259d415f2a040, 3.4.23, 20 kB, true, false, 2, 16, 16, \n"
    );
    assert_eq!(
        print(JSON.status(&list)),
        r#"[{"Endpoint":"127.0.0.1:23790","Status":{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":10,"raft_term":2},"version":"3.4.23","dbSize":20480,"leader":3319814642761637952,"raftIndex":16,"raftTerm":2,"raftAppliedIndex":16,"dbSizeInUse":16384}}]
"#
    );
    assert_eq!(
        print(TABLE.status(&list)),
        "\
+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
|    ENDPOINT     |        ID        | VERSION | DB SIZE | IS LEADER | IS LEARNER | RAFT TERM | RAFT INDEX | RAFT APPLIED INDEX | ERRORS |
+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
| 127.0.0.1:23790 | 2e1259d415f2a040 |  3.4.23 |   20 kB |      true |      false |         2 |         16 |                 16 |        |
+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
"
    );
    assert_eq!(
        print(FIELDS.status(&list)),
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 10
"RaftTerm" : 2
"Version" : "3.4.23"
"DBSize" : 20480
"Leader" : 3319814642761637952
"IsLearner" : false
"RaftIndex" : 16
"RaftTerm" : 2
"RaftAppliedIndex" : 16
"Errors" : []
"Endpoint" : "127.0.0.1:23790"

"#
    );
}

#[test]
fn health() {
    let of = |endpoint: &str, took: &str, error: &str| Health {
        endpoint: endpoint.to_owned(),
        took: took.to_owned(),
        error: error.to_owned(),
    };
    let list = [
        of("127.0.0.1:23790", "3.550029ms", ""),
        of("127.0.0.1:1", "1.000445565s", "context deadline exceeded"),
    ];
    assert_eq!(
        print(SIMPLE.health(&list)),
        "127.0.0.1:23790 is healthy: successfully committed proposal: took = 3.550029ms\n"
    );
    assert_eq!(
        SIMPLE.unhealthy(&list),
        ["127.0.0.1:1 is unhealthy: failed to commit proposal: context deadline exceeded"]
    );
    assert_eq!(
        print(JSON.health(&list)),
        r#"[{"endpoint":"127.0.0.1:23790","health":true,"took":"3.550029ms"},{"endpoint":"127.0.0.1:1","health":false,"took":"1.000445565s","error":"context deadline exceeded"}]
"#
    );
    assert!(JSON.unhealthy(&list).is_empty());
    assert_eq!(
        print(FIELDS.health(&list[..1])),
        "\"Endpoint\" : \"127.0.0.1:23790\"\n\"Health\" : true\n\"Took\" : 3.550029ms\n\"Error\" : \n\n"
    );
    let odd = [of("a&b:1", "0s", "<&>\u{2028}\"")];
    assert_eq!(
        print(JSON.health(&odd)),
        "[{\"endpoint\":\"a\\u0026b:1\",\"health\":false,\"took\":\"0s\",\
         \"error\":\"\\u003c\\u0026\\u003e\\u2028\\\"\"}]\n"
    );
}

#[test]
fn hash_kv() {
    let hash = HashKvResponse {
        hash: u128::from(1_346_451_364u32),
        compact_revision: -1,
        hash_revision: 0,
    };
    let list = [At {
        endpoint: "127.0.0.1:23790".to_owned(),
        answer: answer(10, hash),
    }];
    assert_eq!(
        print(SIMPLE.hash_kv(&list)),
        "127.0.0.1:23790, 1346451364\n"
    );
    assert_eq!(
        print(JSON.hash_kv(&list)),
        r#"[{"Endpoint":"127.0.0.1:23790","HashKV":{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":10,"raft_term":2},"hash":1346451364,"compact_revision":-1}}]
"#
    );
    assert_eq!(
        print(TABLE.hash_kv(&list)),
        "\
+-----------------+------------+
|    ENDPOINT     |    HASH    |
+-----------------+------------+
| 127.0.0.1:23790 | 1346451364 |
+-----------------+------------+
"
    );
    assert_eq!(
        print(FIELDS.hash_kv(&list)),
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 10
"RaftTerm" : 2
"Endpoint" : "127.0.0.1:23790"
"Hash" : 1346451364

"#
    );
    assert_eq!(print(JSON.hash_kv(&[])), "[]\n");
}

/// As etcdctl 3.4.23 prints it, with VARVE_ for ETCD_.
#[test]
fn changes_of_members() {
    let urls = [
        "http://127.0.0.1:42480".to_owned(),
        "http://127.0.0.1:42481".to_owned(),
    ];
    let new = Member {
        id: 0x2a42_c633_8a6e_1ef4,
        peer_urls: urls.to_vec(),
        is_learner: true,
        ..Member::default()
    };
    let old = Member {
        id: 0xb_7124_c8d8_8451,
        name: "n1".to_owned(),
        peer_urls: vec!["http://127.0.0.1:42380".to_owned()],
        client_urls: vec!["http://127.0.0.1:42379".to_owned()],
        ..Member::default()
    };
    let added = answer(
        0,
        MemberAddResponse {
            member: new.clone(),
            members: vec![old.clone(), new],
        },
    );
    let urls = urls.join(",");
    assert_eq!(
        print(SIMPLE.member_added(&added, "l1", &urls).unwrap()),
        "Member 2a42c6338a6e1ef4 added to cluster  48276a8f75b6a87\n\n\
         VARVE_NAME=\"l1\"\n\
         VARVE_INITIAL_CLUSTER=\"n1=http://127.0.0.1:42380,l1=http://127.0.0.1:42480,\
         l1=http://127.0.0.1:42481\"\n\
         VARVE_INITIAL_ADVERTISE_PEER_URLS=\"http://127.0.0.1:42480,http://127.0.0.1:42481\"\n\
         VARVE_INITIAL_CLUSTER_STATE=\"existing\"\n"
    );
    let member = r#"{"ID":3045214222723981044,"peerURLs":["http://127.0.0.1:42480","http://127.0.0.1:42481"],"isLearner":true}"#;
    let header = r#""header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"raft_term":2}"#;
    let other = r#"{"ID":3220627546211409,"name":"n1","peerURLs":["http://127.0.0.1:42380"],"clientURLs":["http://127.0.0.1:42379"]}"#;
    assert_eq!(
        print(JSON.member_added(&added, "l1", &urls).unwrap()),
        format!("{{{header},\"member\":{member},\"members\":[{other},{member}]}}\n")
    );
    let left = answer(0, MemberListResponse { members: vec![old] });
    for (change, words) in [
        (MemberChange::Removed, "removed from"),
        (MemberChange::Updated, "updated in"),
        (MemberChange::Promoted, "promoted in"),
    ] {
        assert_eq!(
            print(
                SIMPLE
                    .member_changed(&left, 0xb_7124_c8d8_8451, change)
                    .unwrap()
            ),
            format!("Member    b7124c8d88451 {words} cluster  48276a8f75b6a87\n")
        );
        assert_eq!(
            print(JSON.member_changed(&left, 7, change).unwrap()),
            format!("{{{header},\"members\":[{other}]}}\n")
        );
    }
    assert_eq!(
        print(SIMPLE.leader_moved(0x1f, 0xab).unwrap()),
        "Leadership transferred from 1f to ab\n"
    );
    assert_eq!(print(JSON.leader_moved(1, 2).unwrap()), "{}\n");
    for (printer, name) in [(FIELDS, "fields"), (TABLE, "table")] {
        assert_eq!(
            printer.check_member_change(),
            Err(Failure::new(
                4,
                format!("{name} not supported as output format")
            ))
        );
    }
}

#[test]
fn members() {
    let list = answer(
        0,
        MemberListResponse {
            members: vec![Member {
                id: 3_319_814_642_761_637_952,
                name: "default".to_owned(),
                peer_urls: vec!["http://127.0.0.1:23800".to_owned()],
                client_urls: vec!["http://127.0.0.1:23790".to_owned()],
                is_learner: false,
            }],
        },
    );
    assert_eq!(
        print(SIMPLE.member_list(&list)),
        "2e1259d415f2a040, started, default, http://127.0.0.1:23800, http://127.0.0.1:23790, false\n"
    );
    assert_eq!(
        print(JSON.member_list(&list)),
        r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"raft_term":2},"members":[{"ID":3319814642761637952,"name":"default","peerURLs":["http://127.0.0.1:23800"],"clientURLs":["http://127.0.0.1:23790"]}]}
"#
    );
    assert_eq!(
        print(TABLE.member_list(&list)),
        "\
+------------------+---------+---------+------------------------+------------------------+------------+
|        ID        | STATUS  |  NAME   |       PEER ADDRS       |      CLIENT ADDRS      | IS LEARNER |
+------------------+---------+---------+------------------------+------------------------+------------+
| 2e1259d415f2a040 | started | default | http://127.0.0.1:23800 | http://127.0.0.1:23790 |      false |
+------------------+---------+---------+------------------------+------------------------+------------+
"
    );
    assert_eq!(
        print(FIELDS.member_list(&list)),
        r#""ClusterID" : 324952591200643719
"MemberID" : 3319814642761637952
"Revision" : 0
"RaftTerm" : 2
"ID" : 3319814642761637952
"Name" : "default"
"PeerURL" : "http://127.0.0.1:23800"
"ClientURL" : "http://127.0.0.1:23790"
"IsLearner" : false

"#
    );
    let hex = Printer { hex: true, ..JSON };
    assert!(print(hex.member_list(&list)).contains("\"ID\":\"2e1259d415f2a040\""));
    let unstarted = answer(
        0,
        MemberListResponse {
            members: vec![Member {
                id: 0xb_7124_c8d8_8451,
                ..Member::default()
            }],
        },
    );
    assert_eq!(
        print(SIMPLE.member_list(&unstarted)),
        "b7124c8d88451, unstarted, , , , false\n"
    );
}
