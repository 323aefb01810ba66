//! Helper threads that wait for work between runs: posting a job to them allocates nothing.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// A number of threads that assist whoever posts a job, shared by every team of that size. They end with the last team.
pub(super) struct Crew {
    board: Arc<Board>,
    /// Owns the threads, each of which serves the board until it is closed.
    _pool: rayon::ThreadPool,
}

/// Where jobs are posted.
#[derive(Default)]
struct Board {
    state: Mutex<State>,
    /// Rung when a job is posted, or the board closed.
    bell: Condvar,
    /// Rung when the last helper has left a job.
    left: Condvar,
    /// How often the bell would have rung: watched for a moment before falling asleep.
    rings: AtomicUsize,
}

#[derive(Default)]
struct State {
    postings: Vec<Posting>,
    /// Helpers that only the bell wakes.
    asleep: usize,
    closed: bool,
}

/// A job that helpers may still join.
struct Posting {
    job: *const Job<'static>,
    /// The number of the next helper to join, and of the last.
    next: usize,
    last: usize,
}

// SAFETY: the job lives until its poster has seen the last helper leave it, and is shared only as `Sync` allows.
unsafe impl Send for Posting {}

/// A job, on its poster's stack.
struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    /// Helpers at it. Changed under the board's lock, so that whoever reads 0 knows that no helper looks at the job.
    helpers: AtomicUsize,
    /// What the first helper that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Looks at a quiet board before falling asleep: some ten microseconds, the pause between two runs in a row.
const LOOKS: usize = 1000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// A crew of `n` threads, or `None` if the system refuses them.
    pub(super) fn of(n: usize) -> Option<Arc<Crew>> {
        static CREWS: OnceLock<Mutex<HashMap<usize, Weak<Crew>>>> = OnceLock::new();
        let mut crews = lock(CREWS.get_or_init(Mutex::default));
        if let Some(crew) = crews.get(&n).and_then(Weak::upgrade) {
            return Some(crew);
        }
        let named = rayon::ThreadPoolBuilder::new().num_threads(n).thread_name(|i| format!("convzoo-{i}"));
        let pool = named.build().ok()?;
        let board = Arc::new(Board::default());
        lock(&board.state).postings.reserve(16);
        let theirs = board.clone();
        pool.spawn_broadcast(move |_| theirs.serve());
        let crew = Arc::new(Crew { board, _pool: pool });
        crews.insert(n, Arc::downgrade(&crew));
        Some(crew)
    }

    /// Calls `run(0)` here, while helpers that have nothing else to do call `run(1)` to `run(helpers)`: each number at most
    /// once, and perhaps none. Returns when all who came have left. A panic is passed on.
    pub(super) fn assisted(&self, helpers: usize, run: &(dyn Fn(usize) + Sync)) {
        let job = Job { run, helpers: AtomicUsize::new(0), panic: Mutex::new(None) };
        let posted = Posted { board: &self.board, job: &job };
        self.board.post(&job, helpers);
        run(0);
        drop(posted);
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        lock(&self.board.state).closed = true;
        self.board.bell.notify_all();
    }
}

/// Takes the job off the board and waits for its helpers, also when its poster unwinds.
struct Posted<'a, 'j> {
    board: &'a Board,
    job: &'a Job<'j>,
}

impl Drop for Posted<'_, '_> {
    fn drop(&mut self) {
        let this = std::ptr::from_ref(self.job).cast();
        lock(&self.board.state).postings.retain(|posting| posting.job != this);
        // All work is done: whoever still is at it leaves at once, unless its thread has been put aside.
        for _ in 0..LOOKS {
            if self.job.helpers.load(Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.board.state);
        while self.job.helpers.load(Acquire) > 0 {
            state = self.board.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Board {
    fn post(&self, job: &Job<'_>, last: usize) {
        let job = std::ptr::from_ref(job).cast();
        let mut state = lock(&self.state);
        state.postings.push(Posting { job, next: 1, last });
        self.rings.fetch_add(1, Release);
        let asleep = state.asleep;
        drop(state);
        if asleep > 0 {
            self.bell.notify_all();
        }
    }

    /// What a helper does all its life.
    fn serve(&self) {
        let mut state = lock(&self.state);
        while !state.closed {
            let Some(posting) = state.postings.iter_mut().find(|posting| posting.next <= posting.last) else {
                state = self.rest(state);
                continue;
            };
            let (worker, job) = (posting.next, posting.job);
            posting.next += 1;
            // SAFETY: the job was on the board, so its poster waits for the helpers counted here, and they are counted
            // before the lock is released.
            let job = unsafe { &*job };
            job.helpers.fetch_add(1, Relaxed);
            drop(state);
            let outcome = catch_unwind(AssertUnwindSafe(|| (job.run)(worker)));
            state = lock(&self.state);
            if let Err(panic) = outcome {
                lock(&job.panic).get_or_insert(panic);
            }
            if job.helpers.fetch_sub(1, Release) == 1 {
                self.left.notify_all();
            }
        }
    }

    /// Waits for the bell: awake for a moment, then asleep.
    fn rest<'s>(&'s self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let heard = self.rings.load(Acquire);
        drop(state);
        for _ in 0..LOOKS {
            if self.rings.load(Acquire) != heard {
                return lock(&self.state);
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.state);
        if self.rings.load(Acquire) == heard && !state.closed {
            state.asleep += 1;
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.asleep -= 1;
        }
        state
    }
}
