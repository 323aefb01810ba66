//! A network of one's own, in the vocabulary the zoo's models are written in.
//!
//! ```text
//! cargo run --release --example custom_model
//! ```

#[macro_use]
#[path = "support/output.rs"]
mod output;

use clap::Parser;
use convzoo::graph::{Layer, Node, concat};
use convzoo::layers::{BatchNorm, ClassifierHead, Conv2d, SeBlock};
use convzoo::{Model, Result, Tensor};
use rand::{SeedableRng, rngs::StdRng};

/// Two views of the same map, a fine and a coarse one, put side by side, reweighted, and added to a shortcut.
struct TwoViews {
    width: usize,
}

impl Layer for TwoViews {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let fine = x.layer("fine", Conv2d::k3(self.width)).layer("fine_bn", BatchNorm::new()).relu();
        let coarse = x.layer("coarse", Conv2d::k3(self.width).dilation(2)).layer("coarse_bn", BatchNorm::new()).relu();
        let both = concat([fine, coarse]).layer("se", SeBlock::reduction(8));
        (both + x.layer("shortcut", Conv2d::k1(2 * self.width))).relu()
    }
}

/// Draws a network of one's own, prints its plan and its logits for one batch.
#[derive(Parser)]
struct Args {}

fn main() {
    Args::parse();
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let network =
        (Conv2d::k3(32).stride(2), vec![TwoViews { width: 32 }, TwoViews { width: 48 }], ClassifierHead::new(7));
    let model = Model::new(&network, &mut StdRng::seed_from_u64(1))?;
    println!("{} parameters, the first {:?}", model.graph().param_count(true), model.graph().params()[0].name);

    let mut plan = model.plan([2, 3, 64, 48])?;
    print!("{}", plan.explain());
    println!("{:?}", plan.run(&Tensor::from_fn(&[2, 3, 64, 48], |i| (i % 17) as f32 / 17.0))?.logits());
    Ok(())
}
