//! The revisioned store with its log, on the simulated disk: power losses and
//! failing disks.

mod crash;
mod faults;
mod system;

/// A number from the environment, for campaigns.
fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}
