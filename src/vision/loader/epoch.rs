//! The batches of one epoch, made by background threads and delivered in order.

use super::Shared;
use crate::error::{Error, Result};
use crate::train::Batch;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What workers and the consumer of an epoch share.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    ahead: usize,
    batches: usize,
}

struct State {
    /// The next batch nobody works on, and the next one the consumer wants.
    next: usize,
    wanted: usize,
    ready: BTreeMap<usize, Result<Batch>>,
    /// The consumer is gone, or a worker is by panic.
    over: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// The next batch to make, once it is near enough to what the consumer wants.
    fn take(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.over || state.next >= self.batches {
                return None;
            }
            if state.next < state.wanted + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }
}

/// Ends the epoch if a worker unwinds, so that nobody waits for what will not come.
struct Alarm<'a>(&'a Queue);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

/// The batches of one epoch.
pub(super) struct Epoch {
    shared: Arc<Shared>,
    epoch: u64,
    order: Arc<Vec<usize>>,
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
}

impl Epoch {
    pub(super) fn start(shared: Arc<Shared>, epoch: u64, first: usize) -> Self {
        let order = Arc::new(shared.order(epoch));
        let state = State { next: first, wanted: first, ready: BTreeMap::new(), over: false };
        let (ahead, batches) = (shared.options.prefetch.max(1), shared.batches());
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new(), ahead, batches });
        let spawn = |i: usize| {
            let (shared, order, queue) = (shared.clone(), order.clone(), queue.clone());
            let work = move || {
                let _alarm = Alarm(&queue);
                while let Some(number) = queue.take() {
                    let batch = shared.batch(epoch, number, &order);
                    queue.lock().ready.insert(number, batch);
                    queue.changed.notify_all();
                }
            };
            // A system without threads to spare is served by the caller's own.
            std::thread::Builder::new().name(format!("loader-{i}")).spawn(work).ok()
        };
        let workers = (0..shared.options.workers.min(batches.saturating_sub(first))).filter_map(spawn).collect();
        Epoch { shared, epoch, order, queue, workers }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let queue = &self.queue;
        let mut state = queue.lock();
        let number = state.wanted;
        if number >= queue.batches {
            return None;
        }
        let batch = if self.workers.is_empty() {
            drop(state);
            let batch = self.shared.batch(self.epoch, number, &self.order);
            state = queue.lock();
            batch
        } else {
            loop {
                if let Some(batch) = state.ready.remove(&number) {
                    break batch;
                }
                if state.over {
                    break Err(Error::invalid("loader", "a worker panicked while preparing a batch"));
                }
                state = queue.wait(state);
            }
        };
        // After an error there is nothing more to come.
        state.wanted = if batch.is_ok() { number + 1 } else { queue.batches };
        queue.changed.notify_all();
        Some(batch)
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.queue.end();
        self.workers.drain(..).for_each(|worker| {
            let _ = worker.join(); // its panic was reported by `next`
        });
    }
}
