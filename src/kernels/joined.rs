//! A convolution and the pass over its output that follows, a block of pixels at a time: what the pass reads is then still in
//! the second cache, and what else it needs is fetched while the convolution multiplies.

#![allow(unsafe_code, reason = "hands raw pointers on to two kernels")]

use super::{Io, Kernel, MAX_INPUTS, Soon, Stripes};

/// Inputs of the joined kernel that the pass reads as its inputs 1, 2 and 3; its input 0 is the output of the first. The
/// others are the first kernel's: its own first two, and its weights.
pub const PASSED: [usize; 3] = [2, 3, 5];

/// Whether `second` passes over the output of `first` in tiles that the blocks of `first` consist of, and needs no scratch memory
/// of its own. Where `second` reads one of the inputs [`PASSED`], `first` must not.
pub fn fits(first: &dyn Kernel, second: &dyn Kernel) -> bool {
    let units = |kernel: &dyn Kernel| kernel.stripes().map(|stripes| (stripes.units, stripes.pixels));
    units(first).is_some() && units(first) == units(second) && second.scratch() == 0
}

/// Both kernels as one. Output: that of the first. `also`: the output of the second, and its own `also[0]`, which may be the
/// output of the first.
pub fn joined(first: Box<dyn Kernel>, second: Box<dyn Kernel>) -> impl Kernel {
    let stripes = first.stripes().filter(|_| fits(&*first, &*second)).expect("the kernels fit");
    Joined { first, second, stripes }
}

struct Joined {
    first: Box<dyn Kernel>,
    second: Box<dyn Kernel>,
    stripes: Stripes,
}

impl Kernel for Joined {
    fn name(&self) -> String {
        format!("{} + {}", self.first.name(), self.second.name())
    }

    fn tiles(&self) -> usize {
        self.stripes.count
    }

    fn scratch(&self) -> usize {
        self.first.scratch()
    }

    fn resident_bytes(&self) -> usize {
        self.first.resident_bytes() + self.second.resident_bytes()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let Stripes { units, count, parts, .. } = self.stripes;
        let mut inputs = [std::ptr::null(); MAX_INPUTS];
        inputs[0] = io.output.cast_const();
        inputs[1..].iter_mut().zip(PASSED).for_each(|(input, from)| *input = io.inputs[from]);
        let also = [io.also[1], std::ptr::null_mut()];
        let pass = Io { inputs, output: io.also[0], also, soon: [Soon::NONE; 2] };
        let soon = self.second.reads().map(|of| of.map_or(Soon::NONE, |(input, ld)| Soon { at: inputs[input], ld }));
        let io = &Io { soon, ..*io };
        // SAFETY: the caller brings what both need; a block's tiles are its own, and so are the units they consist of.
        unsafe {
            for part in 0..parts {
                self.first.run(part * count + tile, io, scratch);
            }
            for unit in tile * units / count..(tile + 1) * units / count {
                self.second.run(unit, &pass, scratch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::conv::{ConvSpec, Direction, Learned, Precision, learned};
    use crate::kernels::light::testing::{run_tiles, values as noise};
    use crate::kernels::norm::train as norm;
    use crate::kernels::{Epilogue, Map, WEIGHTS};
    use crate::shape::{Padding, Window};
    use crate::simd::Isa;

    /// A convolution that writes blocks, made as often as one likes, the maps it reads and writes, and the number of its weights.
    type Writer = (Box<dyn Fn() -> Learned>, [Map; 2], usize);

    /// Convolutions of 1×1 and 3×3 windows, with and without strides, over images that Winograd's squares divide and do not.
    fn writers(isa: Isa) -> impl Iterator<Item = Writer> {
        let around = Padding::Symmetric([1; 2]);
        let cases = [
            (Window::square(1), [2, 61, 43], [24, 96]),
            (Window { padding: around, ..Window::square(3) }, [8, 64, 28], [24, 96]),
            (Window { padding: around, ..Window::square(3) }, [32, 14, 14], [40, 24]),
            (Window { stride: [2; 2], padding: around, ..Window::square(3) }, [4, 64, 80], [24, 96]),
            (Window { stride: [2; 2], ..Window::square(2) }, [6, 61, 43], [24, 96]),
        ];
        cases.into_iter().map(move |(window, [n, h, w], [inputs, outputs])| {
            let placed = window.place([h, w], "test").unwrap();
            let from = Map::new([n, h, w, inputs], inputs + 2);
            let to = Map::new([n, placed.output[0], placed.output[1], outputs], outputs + 2);
            let epilogue = Epilogue::default();
            let spec = ConvSpec { input: from, output: to, window, placed, groups: 1, epilogue };
            let make = move || learned(spec, Direction::Forward, None, Precision::Fast, isa);
            (Box::new(make) as Box<dyn Fn() -> Learned>, [from, to], outputs * spec.depth())
        })
    }

    #[test]
    fn a_convolution_and_the_pass_behind_it_give_the_bits_of_both_in_turn() {
        let cases = Isa::available().iter().flat_map(|&isa| writers(isa).map(move |writer| (isa, writer)));
        for (isa, (make, [from, to], weights)) in cases {
            let (x, weight) = (noise(from.extent(), 1), noise(weights, 2));
            let (before, table) = (noise(to.extent(), 3), noise(norm::TABLE_ROWS * to.c, 4));
            let through = norm::Through::Normalised(crate::activation::Activation::Relu);
            let store = Some((to.ld, crate::kernels::Store::Set));
            let chain = norm::Chain {
                gradient: to,
                gate: None,
                input: to.ld,
                through,
                sums: norm::Sums::Norm,
                store,
                scaled: false,
            };
            let name = make().kernel.name();
            let block = make().kernel.stripes().unwrap_or_else(|| panic!("{name} writes no blocks")).pixels;
            let pass = || -> Box<dyn Kernel> { Box::new(norm::chain(chain, block, isa)) };
            let mut packed = vec![0.0; make().packed];
            run_tiles(&*make().packing, &Io::new(&[weight.as_ptr()], packed.as_mut_ptr()));
            let sums = norm::partial_len(to, block, 2);
            let [mut apart, mut together] = [0, 1].map(|_| (vec![0.0; to.extent()], vec![0.0; sums]));

            let mut io = Io::new(&[x.as_ptr()], apart.0.as_mut_ptr());
            io.inputs[WEIGHTS] = packed.as_ptr();
            run_tiles(&*make().kernel, &io);
            let dy = apart.0.as_mut_ptr();
            let mut io = Io::new(&[dy.cast_const(), before.as_ptr(), table.as_ptr()], apart.1.as_mut_ptr());
            io.also[0] = dy;
            run_tiles(&*pass(), &io);

            assert!(fits(&*make().kernel, &*pass()), "{name}");
            assert!(!fits(&*make().kernel, &norm::chain(chain, block - 1, isa)), "{name}");
            let y = together.0.as_mut_ptr();
            let inputs = [x.as_ptr(), std::ptr::null(), before.as_ptr(), table.as_ptr(), packed.as_ptr()];
            let mut io = Io::new(&inputs, y);
            io.also = [together.1.as_mut_ptr(), y];
            let both = joined(make().kernel, pass());
            assert!(both.tiles() >= 8, "{}", both.name());
            run_tiles(&both, &io);
            assert_eq!(apart, together, "{}", both.name());
        }
    }
}
