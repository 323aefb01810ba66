//! A plan in steady state, of evaluation or of training, allocates nothing, whatever the number of threads.
#![allow(unsafe_code, reason = "a counting allocator is unsafe by signature")]

use convzoo::exec::{TrainOptions, TrainPlan};
use convzoo::{Model, PlanOptions, Tensor, models};
use rand::{SeedableRng, rngs::StdRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every request on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's layout, as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes of `runs` runs after two that may settle things.
fn counted(name: &str, threads: usize, runs: usize) -> (usize, usize) {
    let model = Model::new(&models::build(name, Some(10)).unwrap(), &mut StdRng::seed_from_u64(0)).unwrap();
    let mut plan = model.plan_with([1, 3, 64, 64], &PlanOptions::new().threads(threads)).unwrap();
    let image = Tensor::zeros(&[1, 3, 64, 64]);
    for _ in 0..2 {
        plan.run(&image).unwrap();
    }
    let before = (CALLS.load(Relaxed), BYTES.load(Relaxed));
    for _ in 0..runs {
        plan.run(&image).unwrap();
    }
    (CALLS.load(Relaxed) - before.0, BYTES.load(Relaxed) - before.1)
}

#[test]
fn steady_state_allocates_nothing_for_any_number_of_threads() {
    for name in ["resnet18", "googlenet", "densenet121", "efficientnet_b0", "seresnet50"] {
        for threads in [1, 3] {
            assert_eq!(counted(name, threads, 5), (0, 0), "{name}, {threads} threads");
        }
    }
    // In the same test, because the counter counts what other tests do too.
    for name in ["googlenet", "densenet121", "efficientnet_b0"] {
        for threads in [1, 3] {
            assert_eq!(counted_training(name, threads, 3), (0, 0), "training {name}, {threads} threads");
        }
    }
}

/// Allocations and bytes of `steps` training steps after two that may settle things.
fn counted_training(name: &str, threads: usize, steps: u64) -> (usize, usize) {
    let mut model = Model::new(&models::build(name, Some(10)).unwrap(), &mut StdRng::seed_from_u64(0)).unwrap();
    let options = TrainOptions::new().threads(threads);
    let mut plan = TrainPlan::new(model.graph(), model.params(), [2, 3, 64, 64], &options).unwrap();
    let (images, seed) = (Tensor::zeros(&[2, 3, 64, 64]), Tensor::zeros(&[2, 10]));
    let mut step = |number: u64| {
        plan.forward(model.params_mut(), &images, number).unwrap();
        plan.backward(&[("logits", &seed)]).unwrap();
    };
    (0..2).for_each(&mut step);
    let before = (CALLS.load(Relaxed), BYTES.load(Relaxed));
    (2..2 + steps).for_each(&mut step);
    (CALLS.load(Relaxed) - before.0, BYTES.load(Relaxed) - before.1)
}
