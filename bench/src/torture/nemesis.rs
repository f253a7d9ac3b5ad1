//! What goes wrong, one thing after the other, and how it comes right again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use varve_client::ClientError;
use varve_engine::disk::sim::Rng;
use varve_types::ApiError;

use super::TortureArgs;
use super::cluster::{Cluster, Joins};
use super::network::Network;
use super::record::Record;

/// How long a change of the membership may be refused before that is an error.
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    KillAll,
    PowerLoss,
    PowerLossOfAll,
    Pause,
    LinkDown,
    OneWayDrops,
    OnlyHears,
    OnlySpeaks,
    CutOff,
    DiskFull,
    DiskHangs,
    DiskSpike,
    RollingRestart,
    MoveLeader,
    ReplaceMember,
}

impl Fault {
    /// All of them; those that come more often more than once.
    const ALL: [Self; 24] = [
        Self::Kill,
        Self::Kill,
        Self::Kill,
        Self::KillAll,
        Self::PowerLoss,
        Self::PowerLoss,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::PowerLossOfAll,
        Self::PowerLossOfAll,
        Self::Pause,
        Self::Pause,
        Self::LinkDown,
        Self::LinkDown,
        Self::OneWayDrops,
        Self::OneWayDrops,
        Self::OnlyHears,
        Self::OnlySpeaks,
        Self::CutOff,
        Self::DiskFull,
        Self::DiskHangs,
        Self::DiskSpike,
        Self::MoveLeader,
        Self::ReplaceMember,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::KillAll => "kill -9 of all",
            Self::PowerLoss => "power loss",
            Self::PowerLossOfAll => "power loss of all",
            Self::Pause => "SIGSTOP",
            Self::LinkDown => "link down",
            Self::OneWayDrops => "one-way drops on a link",
            Self::OnlyHears => "member only hears",
            Self::OnlySpeaks => "member only speaks",
            Self::CutOff => "member cut off from members",
            Self::DiskFull => "disk full",
            Self::DiskHangs => "disk hangs",
            Self::DiskSpike => "disk hangs for 500 ms",
            Self::RollingRestart => "rolling restart",
            Self::MoveLeader => "leadership moved",
            Self::ReplaceMember => "member replaced",
        }
    }

    /// Each kind once, by name.
    fn kinds() -> Vec<Self> {
        let mut kinds = Self::ALL.to_vec();
        kinds.dedup();
        kinds.push(Self::RollingRestart);
        kinds
    }

    fn is_available(self, cluster: &Cluster) -> bool {
        let is_of_disk = matches!(self, Self::DiskFull | Self::DiskHangs | Self::DiskSpike);
        let is_of_link = self == Self::LinkDown;
        let is_of_power = matches!(self, Self::PowerLoss | Self::PowerLossOfAll);
        (!is_of_power || cluster.can_lose_power())
            && (!is_of_disk || !cluster.disks.is_empty())
            && (!is_of_link || matches!(cluster.network, Network::Namespaces(_)))
    }
}

/// A kind by its name.
pub(crate) fn parse_fault(name: &str) -> Result<Fault, String> {
    let kinds = Fault::kinds();
    let found = kinds.iter().find(|fault| fault.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = kinds.iter().map(|fault| fault.name()).collect();
        format!("the kinds are: {}", names.join(", "))
    })
}

/// Whoever breaks things.
pub(super) struct Nemesis {
    rng: Rng,
    record: Arc<Record>,
    is_verbose: bool,
    started: Instant,
    /// Kinds that are wanted; empty for all.
    only: Vec<Fault>,
}

type Outcome = Result<(), String>;

impl Nemesis {
    pub(super) fn new(args: &TortureArgs, record: Arc<Record>) -> Self {
        Self {
            rng: Rng::new(args.seed),
            record,
            is_verbose: args.verbose,
            started: Instant::now(),
            only: args.fault.clone(),
        }
    }

    /// Faults for a while. An error is what must not be.
    pub(super) async fn run(&mut self, cluster: &mut Cluster, duration: Duration) -> Outcome {
        self.started = Instant::now();
        self.calm(1500).await;
        // Each kind once, in an order of the seed, then by chance.
        let is_wanted = |fault: &Fault| {
            fault.is_available(cluster) && (self.only.is_empty() || self.only.contains(fault))
        };
        let mut first = Fault::kinds();
        first.retain(is_wanted);
        if first.is_empty() {
            if !self.only.is_empty() {
                return Err("none of the faults that were asked for is to be had here".to_owned());
            }
            // The report says that they are not to be had.
            tokio::time::sleep(duration).await;
            return Ok(());
        }
        let mut often = Fault::ALL.to_vec();
        often.retain(is_wanted);
        let restarts_too = first.contains(&Fault::RollingRestart);
        while self.started.elapsed() < duration {
            let fault = match (first.len(), often.len()) {
                (0, 0) => Fault::RollingRestart,
                (0, _) if restarts_too && self.rng.chance(4) => Fault::RollingRestart,
                (0, count) => often[self.rng.below(count as u64) as usize],
                (count, _) => first.swap_remove(self.rng.below(count as u64) as usize),
            };
            let victim = self.victim(cluster).await;
            self.say(&format!(
                "{} ({})",
                fault.name(),
                cluster.members[victim].name
            ));
            self.record.note_fault(fault.name());
            let outcome = self.inflict(cluster, fault, victim).await;
            let in_words = |what| {
                format!(
                    "{} of {}: {what}",
                    fault.name(),
                    cluster.members[victim].name
                )
            };
            outcome.map_err(in_words)?;
            cluster.wait_healthy().await?;
            self.calm(700).await;
            cluster.check_alive()?;
            cluster.check_whole()?;
        }
        Ok(())
    }

    /// Whoever leads is worth more trouble.
    async fn victim(&mut self, cluster: &Cluster) -> usize {
        let any = self.rng.below(cluster.count() as u64) as usize;
        match self.rng.chance(50) {
            true => cluster.leader().await.unwrap_or(any),
            false => any,
        }
    }

    async fn inflict(&mut self, cluster: &mut Cluster, fault: Fault, victim: usize) -> Outcome {
        let others: Vec<usize> = (0..cluster.count()).filter(|o| *o != victim).collect();
        match fault {
            Fault::Kill => {
                cluster.kill(victim).await;
                self.calm(1500).await;
                spawn(cluster, victim)
            }
            Fault::KillAll => {
                for index in 0..cluster.count() {
                    cluster.signal(index, Signal::KILL);
                }
                for index in 0..cluster.count() {
                    cluster.kill(index).await;
                }
                self.calm(300).await;
                (0..cluster.count()).try_for_each(|index| spawn(cluster, index))
            }
            Fault::PowerLoss => self.lose_power(cluster, &[victim]).await,
            Fault::PowerLossOfAll => {
                let all: Vec<usize> = (0..cluster.count()).collect();
                self.lose_power(cluster, &all).await
            }
            Fault::Pause => {
                cluster.signal(victim, Signal::STOP);
                self.calm(2500).await;
                cluster.signal(victim, Signal::CONT);
                Ok(())
            }
            Fault::LinkDown => {
                cluster.network.link(victim, false).await?;
                self.calm(2500).await;
                cluster.network.link(victim, true).await
            }
            Fault::OneWayDrops => {
                let other = others[self.rng.below(others.len() as u64) as usize];
                self.cut(cluster, vec![(victim, other)]).await
            }
            Fault::OnlyHears => {
                let links = others.iter().map(|other| (victim, *other));
                self.cut(cluster, links.collect()).await
            }
            Fault::OnlySpeaks => {
                let links = others.iter().map(|other| (*other, victim));
                self.cut(cluster, links.collect()).await
            }
            Fault::CutOff => {
                let links = others.iter().flat_map(|o| [(victim, *o), (*o, victim)]);
                self.cut(cluster, links.collect()).await
            }
            Fault::DiskFull => {
                cluster.disks[victim].fill()?;
                self.calm(3000).await;
                cluster.disks[victim].empty()
            }
            Fault::DiskHangs => {
                cluster.disks[victim].freeze().await?;
                tokio::time::sleep(Duration::from_secs(3)).await;
                self.calm(2000).await;
                cluster.disks[victim].thaw().await
            }
            Fault::DiskSpike => {
                cluster.disks[victim].freeze().await?;
                tokio::time::sleep(Duration::from_millis(500)).await;
                cluster.disks[victim].thaw().await
            }
            Fault::RollingRestart => {
                for index in 0..cluster.count() {
                    restart(cluster, index).await?;
                    cluster.wait_healthy().await?;
                }
                Ok(())
            }
            Fault::MoveLeader => self.move_leader(cluster).await,
            Fault::ReplaceMember => self.replace(cluster, victim).await,
        }
    }

    /// Members lose power, and now and then once more while they recover.
    async fn lose_power(&mut self, cluster: &mut Cluster, members: &[usize]) -> Outcome {
        loop {
            // With one seed for all none keeps more than the others: what one keeps, all
            // get from it.
            let shared = self.rng.chance(50).then(|| self.rng.next_u64());
            let seeds = members.iter().map(|index| {
                let seed = shared.unwrap_or_else(|| self.rng.next_u64());
                (*index, seed)
            });
            let seeds: Vec<_> = seeds.collect();
            let lost = cluster.lose_power(&seeds).await?;
            self.record.note_power_loss(lost);
            self.say(&format!(
                "lost: {} bytes, {} changes of names",
                lost.bytes, lost.names
            ));
            self.calm(300).await;
            members
                .iter()
                .try_for_each(|index| spawn(cluster, *index))?;
            if !self.rng.chance(25) {
                return Ok(());
            }
            self.calm(400).await;
            self.say("and once more");
        }
    }

    async fn cut(&mut self, cluster: &Cluster, links: Vec<(usize, usize)>) -> Outcome {
        for (from, to) in &links {
            cluster.network.cut(*from, *to).await?;
        }
        self.calm(2500).await;
        for (from, to) in &links {
            cluster.network.mend(*from, *to).await?;
        }
        Ok(())
    }

    /// Asks for another leader. That may fail: it is the answer that counts.
    async fn move_leader(&mut self, cluster: &Cluster) -> Outcome {
        let Some(leader) = cluster.leader().await else {
            return Ok(());
        };
        let to =
            (leader + 1 + self.rng.below(cluster.count() as u64 - 1) as usize) % cluster.count();
        let client = cluster.client(leader, Duration::from_secs(3));
        let endpoint = |index: usize| cluster.members[index].place.client.clone();
        let Ok(status) = client.status(&endpoint(to)).await else {
            return Ok(());
        };
        let moved = client
            .move_leader(&endpoint(leader), status.header.member_id)
            .await;
        if let Err(error) = moved {
            self.say(&format!("leadership stays: {error}"));
        }
        Ok(())
    }

    /// Removes a member for good, throws its data away, and adds it again as a learner
    /// under a new id.
    async fn replace(&mut self, cluster: &mut Cluster, victim: usize) -> Outcome {
        let other = (victim + 1) % cluster.count();
        let client = cluster.client(other, Duration::from_secs(5));
        let (name, url) = {
            let member = &cluster.members[victim];
            let url = format!("http://{}", member.place.advertised_peer);
            (member.name.clone(), url)
        };
        let members = async || {
            let list = client.member_list(true).await;
            list.map(|answer| answer.body.members)
        };
        // What is asked for may be done although the answer says otherwise.
        let deadline = Instant::now() + CHANGE_PATIENCE;
        let has = |members: &[varve_protocol::Member], url: &str| {
            let found = members
                .iter()
                .find(|m| m.peer_urls.iter().any(|u| u == url));
            found.map(|member| (member.id, member.is_learner))
        };
        loop {
            match members().await.as_deref().map(|members| has(members, &url)) {
                Ok(None) => break,
                Ok(Some((id, _))) => self.note(client.member_remove(id).await.err()),
                Err(error) => self.note_text(&error.to_string()),
            }
            wait_until(deadline, "it is not removed").await?;
        }
        match cluster.ended(victim).await? {
            // Whoever was cut off when it was removed does not know; it is no member all the same.
            Some(0) | None => {}
            Some(code) => return Err(format!("a removed member ended with code {code}")),
        }
        let data_dir = cluster.members[victim].data_dir.clone();
        std::fs::remove_dir_all(&data_dir).map_err(|error| error.to_string())?;
        loop {
            match members().await.as_deref().map(|members| has(members, &url)) {
                Ok(Some(_)) => break,
                Ok(None) => {
                    let added = client.member_add(std::slice::from_ref(&url), true).await;
                    self.note(added.err());
                }
                Err(error) => self.note_text(&error.to_string()),
            }
            wait_until(deadline, "it is not added again").await?;
        }
        let list = members().await.map_err(|error| error.to_string())?;
        let entries = list.iter().flat_map(|member| {
            let name = if member.name.is_empty() {
                &name
            } else {
                &member.name
            };
            member
                .peer_urls
                .iter()
                .map(move |url| format!("{name}={url}"))
        });
        let joins = Joins {
            initial_cluster: entries.collect::<Vec<_>>().join(","),
            state: "existing",
        };
        cluster.set_joins(victim, joins);
        spawn(cluster, victim)?;
        loop {
            match members().await.as_deref().map(|members| has(members, &url)) {
                Ok(Some((_, false))) => return Ok(()),
                Ok(Some((id, true))) => self.note(client.member_promote(id).await.err()),
                Ok(None) => return Err("it is gone again".to_owned()),
                Err(error) => self.note_text(&error.to_string()),
            }
            cluster.check_alive()?;
            wait_until(deadline, "it is not promoted").await?;
        }
    }

    fn note(&self, error: Option<ClientError>) {
        if let Some(error) = error
            && error.api() != Some(ApiError::LearnerNotReady)
        {
            self.note_text(&error.to_string());
        }
    }

    fn note_text(&self, text: &str) {
        self.say(&format!("not yet: {text}"));
    }

    /// A time that is on average as given.
    async fn calm(&mut self, mean_ms: u64) {
        let time = mean_ms / 2 + self.rng.below(mean_ms);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    fn say(&self, what: &str) {
        if self.is_verbose {
            eprintln!("{:8.2} s  {what}", self.started.elapsed().as_secs_f64());
        }
    }
}

fn spawn(cluster: &mut Cluster, index: usize) -> Outcome {
    cluster.spawn(index).map_err(|error| error.to_string())
}

/// An orderly end, and another start.
async fn restart(cluster: &mut Cluster, index: usize) -> Outcome {
    cluster.signal(index, Signal::TERM);
    match cluster.ended(index).await? {
        Some(0) => spawn(cluster, index),
        code => Err(format!(
            "{} ended with {code:?} when asked to end",
            cluster.members[index].name
        )),
    }
}

async fn wait_until(deadline: Instant, or_else: &str) -> Outcome {
    if Instant::now() >= deadline {
        return Err(format!("{or_else} after {CHANGE_PATIENCE:?}"));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}
