//! What a process uses, and how times are told.

use std::time::Duration;

/// An operator's process.
pub struct Process(pub u32);

impl Process {
    /// A figure of `/proc/PID/status`, in KiB.
    pub fn kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    /// For how long it kept a processor busy.
    fn busy(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = |place: usize| {
            fields
                .split_whitespace()
                .nth(place)
                .unwrap()
                .parse::<f64>()
                .unwrap()
        };
        (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
    }

    pub fn used(&self) -> String {
        format!(
            "operator: {:.1} s of a processor, {:.1} MiB, at most {:.1} MiB; load {}",
            self.busy(),
            self.kib("VmRSS") as f64 / 1024.0,
            self.kib("VmHWM") as f64 / 1024.0,
            std::fs::read_to_string("/proc/loadavg")
                .unwrap()
                .split(' ')
                .next()
                .unwrap(),
        )
    }
}

/// Of times that are sorted, in seconds.
pub fn percentile(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64()
}
