//! Threads: the only room that names rayon.
//!
//! A run is one parallel region in which every worker walks the same list of steps and *assists*: it takes tiles of the
//! current step from a shared counter until none are left, waits for those still being computed, and goes on. The
//! calling thread is a worker too and could finish every tile alone, so helpers that are busy elsewhere delay nothing,
//! nothing can deadlock whichever pool or executor the caller belongs to, and a helper that comes late joins where the
//! others are. Since tiles are cut by shape and never by thread count, results have the same bits for any number of
//! threads. Helpers sleep between runs; waking them allocates nothing.
#![allow(unsafe_code, reason = "passes on the tile contract of kernels")]

mod crew;

use crew::Crew;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

/// A list of steps, each cut into tiles.
pub trait Steps: Sync {
    /// Number of steps.
    fn steps(&self) -> usize;

    /// Tiles of a step.
    fn tiles(&self, step: usize) -> usize;

    /// Computes one tile.
    ///
    /// # Safety
    /// Every `(step, tile)` is computed once; all tiles of earlier steps are complete; no two threads use the same
    /// `worker` number at the same time.
    unsafe fn compute(&self, step: usize, tile: usize, worker: usize);
}

/// A fixed number of workers.
pub struct Team {
    threads: usize,
    /// `threads − 1` helpers; none for a serial team, which never starts a thread.
    crew: Option<Arc<Crew>>,
}

impl Team {
    /// A team of `threads` workers, the calling thread among them. If the system refuses threads, the team is serial.
    pub fn new(threads: usize) -> Self {
        let crew = if threads > 1 { Crew::of(threads - 1) } else { None };
        Team { threads: if crew.is_some() { threads } else { 1 }, crew }
    }

    /// Workers, the calling thread included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs every tile of every step. `progress` must be as long as the steps; it is reused from run to run.
    ///
    /// # Safety
    /// `program` must be sound to run: see [`Steps::compute`].
    pub unsafe fn run(&self, program: &impl Steps, progress: &[Progress]) {
        let Some(crew) = &self.crew else {
            for step in 0..program.steps() {
                for tile in 0..program.tiles(step) {
                    // SAFETY: one thread, in order; the caller vouches for the program.
                    unsafe { program.compute(step, tile, 0) };
                }
            }
            return;
        };
        assert_eq!(progress.len(), program.steps());
        for p in progress {
            p.next.store(0, Relaxed);
            p.done.store(0, Relaxed);
        }
        let broken = AtomicBool::new(false);
        crew.assisted(self.threads - 1, &|worker| assist(program, progress, worker, &broken));
    }
}

impl Team {
    /// Calls `job` with every number below `jobs`, in any order, shared among the workers.
    pub fn share(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        struct Jobs<'a>(usize, &'a (dyn Fn(usize) + Sync));
        impl Steps for Jobs<'_> {
            fn steps(&self) -> usize {
                1
            }

            fn tiles(&self, _: usize) -> usize {
                self.0
            }

            unsafe fn compute(&self, _: usize, tile: usize, _: usize) {
                (self.1)(tile);
            }
        }
        if jobs < 2 {
            return (0..jobs).for_each(job);
        }
        // SAFETY: the job is safe to call with any number, in any order and at the same time.
        unsafe { self.run(&Jobs(jobs, job), &[Progress::default()]) }
    }
}

/// How far a step is.
#[derive(Default)]
pub struct Progress {
    next: AtomicUsize,
    done: AtomicUsize,
}

/// Looks at a step that others still compute before offering the processor to someone else: half a millisecond, longer
/// than a tile takes, since whoever accepts keeps the processor for a slice of the scheduler's.
const SPINS: u32 = 50_000;

/// Tells the other workers to stop waiting if this one unwinds.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Release);
        }
    }
}

fn assist(program: &impl Steps, progress: &[Progress], worker: usize, broken: &AtomicBool) {
    let _alarm = Alarm(broken);
    for (step, p) in progress.iter().enumerate() {
        let tiles = program.tiles(step);
        let mut computed = 0;
        while p.next.load(Relaxed) < tiles {
            let tile = p.next.fetch_add(1, Relaxed);
            if tile >= tiles {
                break;
            }
            // SAFETY: the counter hands out each tile once; the wait below orders steps; worker numbers are distinct.
            unsafe { program.compute(step, tile, worker) };
            computed += 1;
        }
        if computed > 0 {
            p.done.fetch_add(computed, Release);
        }
        let mut spins = 0u32;
        while p.done.load(Acquire) < tiles {
            if broken.load(Acquire) {
                return;
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// Threads worth using by default: as many as the processors this process may use at once, by its affinity mask and by
/// the CPU quota of its control group (a container's limit), both of which the standard library reads.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each tile of step `s` adds to a sum that the tiles of step `s + 1` check.
    struct Chain {
        sums: Vec<AtomicUsize>,
        tiles: usize,
    }

    impl Steps for Chain {
        fn steps(&self) -> usize {
            self.sums.len()
        }

        fn tiles(&self, _: usize) -> usize {
            self.tiles
        }

        unsafe fn compute(&self, step: usize, tile: usize, _: usize) {
            if step > 0 {
                let wanted = self.tiles * (self.tiles + 1) / 2;
                assert_eq!(
                    self.sums[step - 1].load(Relaxed),
                    wanted,
                    "a step began before the one before it was complete"
                );
            }
            self.sums[step].fetch_add(tile + 1, Relaxed);
        }
    }

    #[test]
    fn every_tile_runs_once_and_steps_wait_for_each_other() {
        for threads in [1, 2, 7] {
            let team = Team::new(threads);
            for tiles in [1, 3, 64] {
                let chain = Chain { sums: (0..50).map(|_| AtomicUsize::new(0)).collect(), tiles };
                let progress: Vec<_> = (0..50).map(|_| Progress::default()).collect();
                // SAFETY: the program is safe code.
                unsafe { team.run(&chain, &progress) };
                assert!(chain.sums.iter().all(|s| s.load(Relaxed) == tiles * (tiles + 1) / 2));
            }
        }
    }

    #[test]
    fn a_panicking_tile_reaches_the_caller_and_the_team_stays_usable() {
        struct Bad;
        impl Steps for Bad {
            fn steps(&self) -> usize {
                2
            }
            fn tiles(&self, _: usize) -> usize {
                8
            }
            unsafe fn compute(&self, _: usize, tile: usize, _: usize) {
                assert_ne!(tile, 5, "planted");
            }
        }
        let team = Team::new(3);
        let progress = [Progress::default(), Progress::default()];
        // SAFETY: the program is safe code.
        let run = || unsafe { team.run(&Bad, &progress) };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let chain = Chain { sums: vec![AtomicUsize::new(0), AtomicUsize::new(0)], tiles: 4 };
        // SAFETY: the program is safe code.
        unsafe { team.run(&chain, &progress) };
        assert_eq!(chain.sums[1].load(Relaxed), 10);
    }

    #[test]
    fn jobs_posted_from_many_threads_at_once_are_all_done_and_the_crew_goes_home() {
        let run = |threads: usize| {
            let team = Team::new(threads);
            for jobs in 0..200 {
                let done: Vec<_> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
                team.share(jobs, &|i| {
                    done[i].fetch_add(1, Relaxed);
                });
                assert!(done.iter().all(|n| n.load(Relaxed) == 1));
            }
        };
        for _ in 0..3 {
            std::thread::scope(|scope| (0..8).for_each(|i| drop(scope.spawn(move || run(2 + i % 2)))));
        }
    }

    #[test]
    fn a_job_may_share_out_jobs_of_its_own() {
        let (outer, inner) = (Team::new(3), Team::new(3));
        let sum = AtomicUsize::new(0);
        outer.share(10, &|i| {
            inner.share(10, &|j| {
                sum.fetch_add(i * 10 + j, Relaxed);
            });
        });
        assert_eq!(sum.load(Relaxed), (0..100).sum::<usize>());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn default_threads_keep_to_the_affinity_mask_and_the_quota_of_the_control_group() {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let mask = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).expect("Linux has it");
        let allowed: u32 = mask.trim().split(',').map(|m| u32::from_str_radix(m, 16).unwrap().count_ones()).sum();
        // `max 100000` without a limit; the second version of control groups has one file for both numbers.
        let groups = read("/proc/self/cgroup");
        let group = groups.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/");
        let quota = read(&format!("/sys/fs/cgroup{group}/cpu.max"));
        let quota: Vec<usize> = quota.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let most = if let [quota, period] = quota[..] { (quota / period).max(1) } else { usize::MAX };
        assert!((1..=most.min(allowed as usize)).contains(&default_threads()), "{} of {mask}", default_threads());
    }
}
