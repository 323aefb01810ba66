//! Plans among other threads: many at once, inside pools that are busy or nested, and on a single-threaded executor.

use convzoo::{Model, Plan, PlanOptions, Tensor, models};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const SHAPE: [usize; 4] = [1, 3, 64, 64];

fn model() -> Model {
    Model::new(&models::build("resnet18", Some(10)).unwrap(), &mut StdRng::seed_from_u64(0)).unwrap()
}

fn plan(model: &Model, threads: usize) -> Plan {
    model.plan_with(SHAPE, &PlanOptions::new().threads(threads)).unwrap()
}

fn image() -> Tensor {
    let mut rng = StdRng::seed_from_u64(1);
    Tensor::from_fn(&SHAPE, |_| 2.0 * rng.random::<f32>() - 1.0)
}

fn bits(plan: &mut Plan, image: &Tensor) -> Vec<u32> {
    plan.run(image).unwrap().logits().as_slice().iter().map(|v| v.to_bits()).collect()
}

/// Fails instead of hanging.
fn within_a_minute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("it ends, and without a panic")
}

#[test]
fn eight_plans_run_at_once_from_eight_threads_give_the_bits_of_one_alone() {
    within_a_minute(|| {
        let (model, image) = (model(), image());
        let wanted = bits(&mut plan(&model, 1), &image);
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (model, image, wanted) = (&model, &image, &wanted);
                scope.spawn(move || {
                    let mut plan = plan(model, 1 + i % 4);
                    (0..10).for_each(|run| assert!(bits(&mut plan, image) == *wanted, "plan {i}, run {run}"));
                });
            }
        });
    });
}

#[test]
fn batches_give_the_same_bits_whether_workers_share_a_portion_or_take_one_each() {
    within_a_minute(|| {
        let mut rng = StdRng::seed_from_u64(2);
        let batch = Tensor::from_fn(&[8, 3, 128, 128], |_| 2.0 * rng.random::<f32>() - 1.0);
        for name in ["resnet18", "googlenet", "densenet121", "efficientnet_b0"] {
            let drawing = models::build(name, Some(10)).unwrap();
            let model = Model::new(&drawing, &mut StdRng::seed_from_u64(0)).unwrap();
            let plan = |threads| model.plan_with([8, 3, 128, 128], &PlanOptions::new().threads(threads)).unwrap();
            let wanted = bits(&mut plan(1), &batch);
            for threads in [2, 3, 4, 5] {
                let mut plan = plan(threads);
                assert!(threads != 2 || plan.explain().contains("every worker on its own"), "{name}");
                (0..3).for_each(|_| assert!(bits(&mut plan, &batch) == wanted, "{name}, {threads} threads"));
            }
        }
    });
}

#[test]
fn plans_run_inside_a_rayon_pool_on_every_one_of_its_threads() {
    within_a_minute(|| {
        let (model, image) = (model(), image());
        let wanted = bits(&mut plan(&model, 1), &image);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|_| {
                    let mut plan = plan(&model, 4);
                    assert!(bits(&mut plan, &image) == wanted);
                });
            }
        });
    });
}

#[test]
fn a_plan_ends_although_its_helpers_and_the_pool_it_runs_in_are_all_busy() {
    within_a_minute(|| {
        let (model, image) = (model(), image());
        let wanted = bits(&mut plan(&model, 1), &image);
        let release = AtomicBool::new(false);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        std::thread::scope(|threads| {
            // Others run on the same helpers without a pause,
            for _ in 0..2 {
                threads.spawn(|| {
                    let mut plan = plan(&model, 2);
                    while !release.load(Ordering::Relaxed) {
                        assert!(bits(&mut plan, &image) == wanted);
                    }
                });
            }
            pool.in_place_scope(|scope| {
                // and the pool's other thread does nothing but wait until the plan has run.
                scope.spawn(|_| {
                    while !release.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                });
                scope.spawn(|_| {
                    let mut plan = plan(&model, 2);
                    (0..5).for_each(|_| assert!(bits(&mut plan, &image) == wanted));
                    release.store(true, Ordering::Relaxed);
                });
            });
        });
    });
}

#[test]
fn plans_take_turns_on_an_executor_of_one_thread() {
    /// Ready when it is asked the second time.
    struct Turn(bool);
    impl Future for Turn {
        type Output = ();
        fn poll(mut self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
        }
    }
    within_a_minute(|| {
        let (model, image) = (model(), image());
        let wanted = bits(&mut plan(&model, 1), &image);
        let task = |threads| {
            let (model, image, wanted) = (&model, &image, &wanted);
            Box::pin(async move {
                let mut plan = plan(model, threads);
                for _ in 0..3 {
                    assert!(bits(&mut plan, image) == *wanted);
                    Turn(false).await;
                }
            })
        };
        let mut tasks = [task(2), task(3), task(2)];
        let mut context = Context::from_waker(Waker::noop());
        let mut left = tasks.len();
        let mut done = [false; 3];
        while left > 0 {
            for (task, done) in tasks.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                *done = task.as_mut().poll(&mut context).is_ready();
                left -= usize::from(*done);
            }
        }
    });
}
