//! Whole networks, one image at a time, with random weights: one thread and all of them.
//!
//! `cargo bench --bench models [-- FILTER]`. The throughput counts multiply-accumulates. Before a network is timed, its
//! answer with all threads must equal that of one, bit for bit.

use convzoo::{Model, PlanOptions, Tensor, models, par};
use criterion::{Criterion, Throughput};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

const NAMES: &[&str] = &[
    "alexnet",
    "googlenet",
    "resnet18",
    "resnet50",
    "densenet121",
    "seresnet50",
    "resnext50_32x4d",
    "efficientnet_b0",
    "mobilenet_v2",
    "deform_resnet50_v2_c3",
];

fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    for &name in NAMES {
        let info = models::get(name).expect("a name of the registry");
        group.throughput(Throughput::Elements(info.macs));
        let mut threads = vec![1, par::default_threads()];
        threads.dedup();
        for count in threads {
            let mut plan = None;
            let image = Tensor::from_fn(&[1, 3, 224, 224], |i| (i % 251) as f32 / 125.0 - 1.0);
            group.bench_function(format!("{name}/{count}"), |b| {
                let plan = plan.get_or_insert_with(|| {
                    let network = models::build(name, None).expect("a name of the registry");
                    let model = Model::new(&network, &mut StdRng::seed_from_u64(0)).expect("it draws");
                    let run = |threads| {
                        let options = PlanOptions::new().threads(threads);
                        let mut plan = model.plan_with([1, 3, 224, 224], &options).expect("it plans");
                        let logits = plan.run(&image).expect("it runs").logits().clone();
                        (plan, logits)
                    };
                    let ((_, alone), (plan, together)) = (run(1), run(count));
                    assert!(alone == together, "{name} depends on the number of threads");
                    assert!(alone.as_slice().iter().all(|v| v.is_finite()), "{name} overflows");
                    plan
                });
                b.iter(|| plan.run(&image).expect("it runs").logits().as_slice()[0]);
            });
        }
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_millis(500))
}

fn main() {
    let mut criterion = settings().configure_from_args();
    forward(&mut criterion);
    criterion.final_summary();
}
