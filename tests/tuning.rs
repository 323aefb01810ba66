//! Plans whose convolutions were chosen by timing, and the file that keeps the choices.

use convzoo::graph::{Node, concat, layer_fn};
use convzoo::layers::*;
use convzoo::{Model, PlanOptions, Precision, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::fs;
use std::path::PathBuf;

/// A file name of one's own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("convzoo-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path); // usually there is none
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // nothing better can be done with a failure here
    }
}

/// Windows of every kind of which there are several ways, shared shapes, a gate, a concatenation and a residual sum.
fn net(x: Node<'_>) -> Node<'_> {
    let x = x.layer("stem", ConvNormAct::new(Conv2d::k3(32).stride(2)));
    let y = x.layer("a", ConvNormAct::new(Conv2d::k3(32)));
    let y = y.layer("b", ConvNormAct::new(Conv2d::k3(32))) + x;
    let y = concat([y.layer("c", Conv2d::k1(64)).relu(), y.layer("d", Conv2d::k(5, 32)).relu()]);
    y.layer("e", Conv2d::k1(64)).layer("gap", GlobalAvgPool).layer("flat", Flatten).layer("fc", Linear::new(7))
}

fn model() -> (Model, Tensor) {
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let input = Tensor::from_fn(&[2, 3, 30, 30], |_| 2.0 * rng.random::<f32>() - 1.0);
    (model, input)
}

#[test]
fn a_tuned_plan_equals_the_reference_and_the_file_brings_its_bits_back() {
    let (model, input) = model();
    let wanted = model.reference::<f64>(&input).unwrap().data;
    let file = Scratch::new("tuned");
    let run = |options: PlanOptions| {
        let mut plan = model.plan_with([2, 3, 30, 30], &options.tuned(&file.0)).unwrap();
        let logits = plan.run(&input).unwrap().logits().as_slice().to_vec();
        (logits, plan.explain())
    };
    let (first, _) = run(PlanOptions::new().threads(1));
    let largest = wanted.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    for (found, wanted) in first.iter().zip(&wanted) {
        assert!((f64::from(*found) - wanted).abs() < 1e-5 * largest, "{found} instead of {wanted}");
    }
    let text = fs::read_to_string(&file.0).unwrap();
    // 3×3 of a and b differ by the residual; c, d, e, and the stem.
    assert!(text.lines().filter(|line| !line.starts_with('#')).count() >= 4, "{text}");
    let (second, _) = run(PlanOptions::new().threads(2));
    assert_eq!(first, second, "another number of threads chose otherwise");
    assert_eq!(text, fs::read_to_string(&file.0).unwrap(), "what was known was timed again");

    // The file decides: with every choice turned to the plain sum, the plan has none but plain sums.
    let plain = |line: &str| {
        if line.starts_with('#') { line.to_owned() } else { format!("{}\tplain", line.rsplit_once('\t').unwrap().0) }
    };
    fs::write(&file.0, text.lines().map(|line| plain(line) + "\n").collect::<String>()).unwrap();
    let (_, explained) = run(PlanOptions::new().threads(1));
    assert!(!explained.contains("winograd") && !explained.contains("strassen"), "{explained}");
}

#[test]
fn plain_sums_leave_nothing_to_choose() {
    let (model, _) = model();
    let file = Scratch::new("exact");
    model.plan_with([2, 3, 30, 30], &PlanOptions::new().precision(Precision::Exact).tuned(&file.0)).unwrap();
    assert!(!file.0.exists());
}

#[test]
fn a_file_that_is_none_and_a_folder_that_is_not_there_are_named() {
    let (model, _) = model();
    let file = Scratch::new("damaged");
    let refusal = |options: PlanOptions| model.plan_with([2, 3, 30, 30], &options).expect_err("refused").to_string();
    for (content, place) in [("# fine\nno tab here\n", "line 2"), ("a\tb\tby magic\n", "line 1")] {
        fs::write(&file.0, content).unwrap();
        let error = refusal(PlanOptions::new().tuned(&file.0));
        assert!(error.contains(place) && error.contains("damaged"), "{error}");
        assert_eq!(fs::read_to_string(&file.0).unwrap(), content, "a file that is not ours was written over");
    }
    fs::write(&file.0, [0xff, 0xfe, 0]).unwrap();
    let error = refusal(PlanOptions::new().tuned(&file.0));
    assert!(
        error.contains("damaged: is not text from byte 0 on: expected a file beginning with `# convzoo"),
        "{error}"
    );
    let nowhere = file.0.with_extension("folder").join("tuned");
    let error = refusal(PlanOptions::new().tuned(&nowhere));
    assert!(error.contains("folder"), "{error}");
}
