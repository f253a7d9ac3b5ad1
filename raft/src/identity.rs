//! Member and cluster ids, computed as etcd computes them.
//!
//! A member's id is the start of a hash over its peer URLs and the cluster
//! token, a cluster's id that of a hash over its members' ids. So every member
//! of a static bootstrap finds the same ids on its own, and two clusters with
//! the same URLs but different tokens never take each other for one.
//! Source: etcd's `membership/member.go` and `membership/cluster.go`.

use sha1::{Digest, Sha1};

/// The id of a member of a static bootstrap: the first eight bytes of the SHA-1
/// over the sorted peer URLs, joined without a separator, and the cluster token.
pub fn member_id(peer_urls: &[impl AsRef<str>], token: &str) -> u64 {
    hash_member(peer_urls, token, None)
}

/// The id of a member that is added at run time: without token, but with the
/// Unix time in seconds, so that the same URL gets a new id at every add.
pub fn added_member_id(peer_urls: &[impl AsRef<str>], unix_seconds: i64) -> u64 {
    hash_member(peer_urls, "", Some(unix_seconds))
}

/// The id of a cluster: the first eight bytes of the SHA-1 over its members'
/// ids in ascending order, each as eight bytes, most significant first.
pub fn cluster_id(member_ids: impl IntoIterator<Item = u64>) -> u64 {
    let mut ids: Vec<u64> = member_ids.into_iter().collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    first_u64(hash)
}

fn hash_member(peer_urls: &[impl AsRef<str>], token: &str, unix_seconds: Option<i64>) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(AsRef::as_ref).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    if let Some(seconds) = unix_seconds {
        hash.update(seconds.to_string().as_bytes());
    }
    first_u64(hash)
}

fn first_u64(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G1 and G2 of the feature table: values that etcd itself printed.
    #[test]
    fn default_single_member() {
        let id = member_id(&["http://localhost:2380"], "etcd-cluster");
        assert_eq!(id, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id([id]), 0xcdf8_1819_4e3a_8c32);
    }

    /// G3.
    #[test]
    fn three_members_and_their_cluster() {
        let ids: Vec<u64> = ["100", "101", "102"]
            .map(|host| {
                member_id(
                    &[format!("http://192.168.99.{host}:2380").as_str()],
                    "docker-etcd",
                )
            })
            .to_vec();
        assert_eq!(
            ids,
            [
                0xc88e_2ccc_bb28_7a01,
                0x773d_30c9_fc66_40b4,
                0xcbd7_fa8d_0129_7113
            ]
        );
        assert_eq!(cluster_id(ids), 0xf841_85fa_5f91_bdf6);
    }

    /// G4.
    #[test]
    fn members_by_host_name() {
        let ids = [
            "http://node1:2380",
            "http://node2:2380",
            "http://etcd2:2380",
        ]
        .map(|url| member_id(&[url], "mritd-etcd-cluster"));
        assert_eq!(
            ids,
            [
                0x377a_a109_74e8_238d,
                0xf75e_d833_c7cb_be65,
                0x9de2_d4fd_bbd8_35b6
            ]
        );
    }

    /// G5: ids are printed without padding.
    #[test]
    fn an_id_with_leading_zeros() {
        let ids = ["2380", "2381", "2382"].map(|port| {
            member_id(
                &[format!("http://192.168.9.100:{port}").as_str()],
                "etcd-cluster-test",
            )
        });
        assert_eq!(format!("{:x}", ids[0]), "b7124c8d88451");
        assert_eq!(ids[1..], [0xe356_6533_5259_ca10, 0x235d_cf74_ed62_48d5]);
    }

    /// G6: what is hashed for a member added at run time.
    #[test]
    fn an_added_member_gets_a_new_id_each_time() {
        let urls = ["http://192.168.99.101:2380"];
        let first = added_member_id(&urls, 1_500_000_000);
        assert_ne!(first, added_member_id(&urls, 1_500_000_001));
        assert_ne!(first, member_id(&urls, "docker-etcd"));
        assert_eq!(
            first,
            member_id(&["http://192.168.99.101:2380"], "1500000000")
        );
    }

    #[test]
    fn the_order_of_urls_does_not_matter() {
        assert_eq!(
            member_id(&["http://b:1", "http://a:1"], "t"),
            member_id(&["http://a:1", "http://b:1"], "t")
        );
    }
}
