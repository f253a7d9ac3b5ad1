//! The command line: etcdctl's commands and flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands::inspect::InspectArgs;
use crate::go_format::{parse_bool, parse_duration, parse_int};

/// A simple command line client for varve.
#[derive(Debug, Parser)]
#[command(
    name = "varvectl",
    version,
    disable_version_flag = true,
    infer_subcommands = true,
    args_override_self = true,
    arg_required_else_help = true,
    after_help = "Every global flag can also be given as VARVECTL_<FLAG> or ETCDCTL_<FLAG>, \
        for example VARVECTL_ENDPOINTS."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command; unset ones are looked up in the environment.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// Nodes to talk to [default: 127.0.0.1:2379]
    #[arg(long, global = true, value_delimiter = ',', value_name = "HOST:PORT")]
    pub(crate) endpoints: Option<Vec<String>>,
    /// Output format: fields, json, simple or table [default: simple]
    #[arg(short, long, global = true, value_name = "FORMAT")]
    pub(crate) write_out: Option<String>,
    /// Print byte strings as hex encoded strings
    #[arg(long, global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = parse_bool, value_name = "BOOL")]
    pub(crate) hex: Option<bool>,
    /// Timeout for a command, such as 5s [default: 5s]
    #[arg(long, global = true, value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) command_timeout: Option<Duration>,
    /// Timeout for connecting to one node [default: 2s]
    #[arg(long, global = true, value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) dial_timeout: Option<Duration>,
    /// Ask a silent node for a sign of life after this long [default: 2s]
    #[arg(long, global = true, value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) keepalive_time: Option<Duration>,
    /// Leave a node that stays silent for this long after that [default: 6s]
    #[arg(long, global = true, value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) keepalive_timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Gets the key or a range of keys
    Get(GetArgs),
    /// Puts the given key into the store; a missing value is read from standard input
    Put(PutArgs),
    /// Removes the specified key or range of keys [key, range_end)
    Del(DelArgs),
    /// Processes all the requests in one transaction, read from standard input
    Txn(TxnArgs),
    /// Compacts the event history
    #[command(alias = "compact")]
    Compaction(CompactionArgs),
    /// Watches events on keys or prefixes
    Watch(WatchArgs),
    /// Endpoint related commands
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Endpoint(EndpointArgs),
    /// Alarm related commands
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Alarm(AlarmArgs),
    /// Gives the free space of the endpoints' members back, while they serve
    Defrag(DefragArgs),
    /// Prints how many keys, and how many bytes of keys and their records, are under a prefix,
    /// by path component
    Space(SpaceArgs),
    /// Membership related commands
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Member(MemberArgs),
    /// Transfers leadership to another node in the cluster
    MoveLeader(MoveLeaderArgs),
    /// Manages node snapshots
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Snapshot(SnapshotArgs),
    /// Shows what is in the files of a node that is stopped, or of a backup; changes nothing
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Inspect(InspectArgs),
    /// Prints the version of varvectl
    Version,
}

/// A flag that is given as `--x`, `--x=true` or `--x=false`.
macro_rules! switches {
    ($(#[$outer:meta])* $name:ident { $($(#[doc = $doc:literal])+ $switch:ident),+ $(,)? }
     $({ $($fields:tt)* })?) => {
        $(#[$outer])*
        #[derive(Debug, Default, Args)]
        pub(crate) struct $name {
            $($(#[doc = $doc])+
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
                  default_value = "false", value_parser = parse_bool, action = ArgAction::Set,
                  hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
            pub(crate) $switch: bool,)+
            $($($fields)*)?
        }
    };
}

switches! {
    /// Arguments of `get`.
    GetArgs {
        /// Get keys with matching prefix
        prefix,
        /// Get keys that are greater than or equal to the given key using byte compare
        from_key,
        /// Get only the keys
        keys_only,
        /// Get only the count
        count_only,
        /// Only write values when using the "simple" output format
        print_value_only,
    } {
        /// Linearizable(l) or Serializable(s)
        #[arg(long, default_value = "l")]
        pub(crate) consistency: String,
        /// Order of results; ASCEND or DESCEND (ASCEND by default)
        #[arg(long, default_value = "")]
        pub(crate) order: String,
        /// Sort target; CREATE, KEY, MODIFY, VALUE, or VERSION
        #[arg(long, default_value = "")]
        pub(crate) sort_by: String,
        /// Maximum number of results
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) limit: i64,
        /// Specify the kv revision
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) rev: i64,
        /// Minimum create revision
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) min_create_rev: i64,
        /// Maximum create revision
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) max_create_rev: i64,
        /// Minimum modification revision
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) min_mod_rev: i64,
        /// Maximum modification revision
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) max_mod_rev: i64,
        /// The key, and the end of a range
        #[arg(value_name = "KEY [RANGE_END]")]
        pub(crate) args: Vec<OsString>,
    }
}

switches! {
    /// Arguments of `put`.
    PutArgs {
        /// Return the previous key-value pair before modification
        prev_kv,
        /// Updates the key using its current value
        ignore_value,
        /// Updates the key using its current lease
        ignore_lease,
    } {
        /// Lease ID (in hexadecimal) to attach to the key
        #[arg(long, default_value = "0", allow_hyphen_values = true)]
        pub(crate) lease: String,
        /// The key and its value
        #[arg(value_name = "KEY [VALUE]")]
        pub(crate) args: Vec<OsString>,
    }
}

switches! {
    /// Arguments of `del`.
    DelArgs {
        /// Delete keys with matching prefix
        prefix,
        /// Return deleted key-value pairs
        prev_kv,
        /// Delete keys that are greater than or equal to the given key using byte compare
        from_key,
        /// Delete range of keys
        range,
    } {
        /// The key, and the end of a range
        #[arg(value_name = "KEY [RANGE_END]")]
        pub(crate) args: Vec<OsString>,
    }
}

/// Arguments of `txn`.
#[derive(Debug, Args)]
pub(crate) struct TxnArgs {
    /// Input transaction in interactive mode
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = parse_bool, action = ArgAction::Set,
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub(crate) interactive: bool,
    #[arg(hide = true)]
    pub(crate) args: Vec<OsString>,
}

switches! {
    /// Arguments of `compaction`.
    CompactionArgs {
        /// Wait for compaction to physically remove all old revisions
        physical,
    } {
        /// The revision
        #[arg(value_name = "REVISION", allow_negative_numbers = true)]
        pub(crate) args: Vec<String>,
    }
}

switches! {
    /// Flags and keys of a watch, on the command line and in a line of `watch -i`.
    WatchTarget {
        /// Watch on a prefix
        prefix,
        /// Get the previous key-value pair before the event happens
        prev_kv,
        /// Get periodic watch progress notification from server
        progress_notify,
    } {
        /// Revision to start watching
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) rev: i64,
        /// The key or prefix, and the end of a range
        #[arg(value_name = "KEY [RANGE_END]")]
        pub(crate) args: Vec<OsString>,
        /// A command to run for each event
        #[arg(last = true, value_name = "COMMAND")]
        pub(crate) command: Vec<OsString>,
    }
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Interactive mode
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = parse_bool, action = ArgAction::Set,
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) target: WatchTarget,
}

/// Arguments of `alarm`.
#[derive(Debug, Args)]
pub(crate) struct AlarmArgs {
    #[command(subcommand)]
    pub(crate) command: AlarmCommand,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum AlarmCommand {
    /// Lists all alarms
    List,
    /// Disarms all alarms
    Disarm,
}

/// Arguments of `endpoint`.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    /// Use all endpoints from the cluster member list
    #[arg(long, global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = parse_bool,
          action = ArgAction::Set, hide_default_value = true, hide_possible_values = true,
          value_name = "BOOL")]
    pub(crate) cluster: bool,
    #[command(subcommand)]
    pub(crate) command: EndpointCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Checks the healthiness of endpoints specified in `--endpoints` flag
    Health(Ignored),
    /// Prints out the status of endpoints specified in `--endpoints` flag
    Status(Ignored),
    /// Prints the KV history hash for each endpoint in --endpoints
    Hashkv(HashKvArgs),
}

/// Arguments of `endpoint hashkv`.
#[derive(Debug, Args)]
pub(crate) struct HashKvArgs {
    /// Maximum revision to hash (default: all revisions)
    #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true)]
    pub(crate) rev: i64,
    #[arg(hide = true)]
    pub(crate) args: Vec<OsString>,
}

switches! {
    /// Arguments of `defrag`.
    DefragArgs {
        /// Use all endpoints from the cluster member list
        cluster,
    } {
        #[arg(hide = true)]
        pub(crate) args: Vec<OsString>,
    }
}

/// Arguments of `space`.
#[derive(Debug, Args)]
pub(crate) struct SpaceArgs {
    /// How many path components deep
    #[arg(long, default_value = "1", value_parser = parse_int, allow_hyphen_values = true)]
    pub(crate) depth: i64,
    /// What ends a path component
    #[arg(long, default_value = "/")]
    pub(crate) separator: OsString,
    /// What the keys begin with; '' for all keys
    #[arg(value_name = "PREFIX")]
    pub(crate) args: Vec<OsString>,
}

/// Arguments of `member`.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    pub(crate) command: MemberCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Adds a member into the cluster
    Add(MemberAddArgs),
    /// Removes a member from the cluster
    Remove(MemberIdArgs),
    /// Updates a member in the cluster
    Update(MemberUpdateArgs),
    /// Promotes a non-voting member in the cluster
    Promote(MemberIdArgs),
    /// Lists all members in the cluster
    List(MemberListArgs),
}

/// Arguments of `member add`.
#[derive(Debug, Default, Args)]
pub(crate) struct MemberAddArgs {
    /// The new member is a raft learner, which gets its vote once it has caught up; with
    /// =keep it remains one until `member promote`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = parse_learner, hide_default_value = true,
          value_name = "BOOL|keep")]
    pub(crate) learner: Learner,
    /// Comma separated peer URLs for the new member
    #[arg(long, default_value = "")]
    pub(crate) peer_urls: String,
    /// Its name
    #[arg(value_name = "NAME")]
    pub(crate) args: Vec<String>,
}

/// Whether a new member has a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Learner {
    /// At once.
    #[default]
    No,
    /// When somebody promotes it.
    Keep,
    /// Once it has caught up.
    Promoted,
}

fn parse_learner(text: &str) -> Result<Learner, String> {
    match text {
        "keep" => Ok(Learner::Keep),
        text => parse_bool(text).map(|is_learner| match is_learner {
            true => Learner::Promoted,
            false => Learner::No,
        }),
    }
}

/// Arguments of `member update`.
#[derive(Debug, Args)]
pub(crate) struct MemberUpdateArgs {
    /// Comma separated peer URLs for the updated member
    #[arg(long, default_value = "")]
    pub(crate) peer_urls: String,
    /// Its id in hex
    #[arg(value_name = "MEMBER_ID")]
    pub(crate) args: Vec<String>,
}

/// Arguments of `member remove` and `member promote`.
#[derive(Debug, Args)]
pub(crate) struct MemberIdArgs {
    /// Its id in hex
    #[arg(value_name = "MEMBER_ID")]
    pub(crate) args: Vec<String>,
}

/// Arguments of `move-leader`.
#[derive(Debug, Args)]
pub(crate) struct MoveLeaderArgs {
    /// Id in hex of the member that is to lead
    #[arg(value_name = "TRANSFEREE_ID")]
    pub(crate) args: Vec<String>,
}

/// Arguments of `member list`.
#[derive(Debug, Args)]
pub(crate) struct MemberListArgs {
    /// Linearizable(l) or Serializable(s)
    #[arg(long, default_value = "l")]
    pub(crate) consistency: String,
    #[arg(hide = true)]
    pub(crate) args: Vec<OsString>,
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Stores a snapshot of one node to a given file
    Save(SnapshotFileArgs),
    /// Gets status of a given snapshot file
    Status(SnapshotFileArgs),
    /// Restores a snapshot to a new data directory
    Restore(SnapshotRestoreArgs),
}

/// Arguments of `snapshot save` and `snapshot status`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotFileArgs {
    /// The file
    #[arg(value_name = "FILENAME")]
    pub(crate) args: Vec<OsString>,
}

switches! {
    /// Arguments of `snapshot restore`.
    SnapshotRestoreArgs {
        /// For scripts made for etcdctl; no effect, as every snapshot of varve has its checksums
        skip_hash_check,
    } {
        /// Human-readable name for this member
        #[arg(long, default_value = "default")]
        pub(crate) name: String,
        /// Initial cluster configuration for restore bootstrap
        #[arg(long, default_value = "default=http://localhost:2380")]
        pub(crate) initial_cluster: String,
        /// Initial cluster token for the cluster during restore bootstrap
        #[arg(long, default_value = "etcd-cluster")]
        pub(crate) initial_cluster_token: String,
        /// List of this member's peer URLs to advertise to the rest of the cluster
        #[arg(long, default_value = "http://localhost:2380")]
        pub(crate) initial_advertise_peer_urls: String,
        /// Path to the data directory [default: NAME.varve]
        #[arg(long)]
        pub(crate) data_dir: Option<OsString>,
        /// How much to increase the revision, so that no client sees one again that it has seen
        /// with other contents; 0 keeps revision and history as they are in the snapshot
        #[arg(long, default_value = "1000000000", value_parser = parse_int, allow_hyphen_values = true)]
        pub(crate) bump_revision: i64,
        /// Mark the new revision as compacted: whoever watches from an older one is told [default:
        /// true, or false if --bump-revision=0]
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
              value_parser = parse_bool, value_name = "BOOL")]
        pub(crate) mark_compacted: Option<bool>,
        /// Storage engine of the new data directory
        #[arg(long)]
        pub(crate) engine: Option<String>,
        /// The file
        #[arg(value_name = "FILENAME")]
        pub(crate) args: Vec<OsString>,
    }
}

/// Arguments that etcdctl takes and pays no attention to.
#[derive(Debug, Args)]
pub(crate) struct Ignored {
    #[arg(hide = true)]
    pub(crate) args: Vec<OsString>,
}
