//! Wall clock, CPU and memory of the bench's processes, and of the broker's where
//! `POSTRIDER_BENCH_BROKER_PID` names it.

use std::{collections::BTreeMap, fs, time::Instant};

pub(super) struct Meter {
    begun: Instant,
    processes: Vec<(&'static str, u32, f64)>,
}

pub(super) struct Reading {
    pub(super) seconds: f64,
    cpu: BTreeMap<&'static str, f64>,
    /// Resident memory of each process.
    pub(super) rss: BTreeMap<&'static str, f64>,
}

impl Meter {
    pub(super) fn start(processes: impl Iterator<Item = (&'static str, u32)>) -> Self {
        let broker = std::env::var("POSTRIDER_BENCH_BROKER_PID").ok();
        let broker = broker
            .and_then(|pid| pid.trim().parse().ok())
            .map(|pid| ("broker", pid));
        let processes = processes
            .chain(broker)
            .map(|(name, pid)| (name, pid, cpu_seconds(pid)))
            .collect();
        Self {
            begun: Instant::now(),
            processes,
        }
    }

    pub(super) fn read(&self) -> Reading {
        let each = self.processes.iter();
        Reading {
            seconds: self.begun.elapsed().as_secs_f64(),
            cpu: each
                .clone()
                .map(|(name, pid, was)| (*name, cpu_seconds(*pid) - was))
                .collect(),
            rss: each.map(|(name, pid, _)| (*name, rss_mib(*pid))).collect(),
        }
    }
}

impl Reading {
    /// CPU seconds of a process.
    pub(super) fn cpu(&self, name: &str) -> f64 {
        self.cpu.get(name).copied().unwrap_or(f64::NAN)
    }

    /// CPU microseconds per unit of work, each process by its name.
    pub(super) fn per(&self, count: u64) -> BTreeMap<&'static str, f64> {
        let per = |cpu: &f64| (cpu * 1e7 / count as f64).round() / 10.0;
        self.cpu
            .iter()
            .map(|(name, cpu)| (*name, per(cpu)))
            .collect()
    }
}

/// User and system time so far; 0 for a process that is gone.
fn cpu_seconds(pid: u32) -> f64 {
    /// What the kernel reports times in, on every platform we run on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the command's name in parentheses, user and system time are fields 12 and 13.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

fn rss_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    (kib / 102.4).round() / 10.0
}
