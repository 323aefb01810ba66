use super::cut::{EACH_BYTES, PIECE_BYTES, ROOMY};
use super::*;

#[test]
fn panels_cover_all_columns_with_nearly_equal_widths() {
    for &isa in Isa::available() {
        for n in [1, 3, 16, 17, 33, 64, 65, 100, 130, 400, 1000] {
            let panels = cut_panels(Extent { taps: 2, k: 5, n }, isa);
            assert_eq!(panels.iter().map(|p| p.len).sum::<usize>(), n);
            assert!(panels.windows(2).all(|w| w[0].start + w[0].len == w[1].start));
            let widths = panels.iter().map(|p| p.vectors);
            assert_eq!(widths.clone().max(), Some(panels[0].vectors));
            assert!(widths.clone().max().unwrap() - widths.min().unwrap() <= 1, "{n} on {}", isa.name());
        }
    }
}

#[test]
fn pieces_cover_taps_and_k_once_in_order() {
    for (taps, k) in [(1, 10), (9, 64), (9, 512), (1, 25088), (9, 1000), (49, 300), (25, 7), (1, 1153)] {
        let pieces = cut_pieces(Extent { taps, k, n: 64 }, 64);
        let all = pieces.iter().flat_map(|p| p.taps.clone().flat_map(|t| p.k.clone().map(move |k| (t, k))));
        assert!(all.eq((0..taps).flat_map(|t| (0..k).map(move |k| (t, k)))), "{taps}×{k}: {pieces:?}");
        assert!(pieces.iter().all(|p| p.taps.len() * p.k.len() * 64 * 4 <= 2 * PIECE_BYTES), "{pieces:?}");
    }
}

#[test]
fn parts_of_k_cover_it_once_in_order_and_fit_the_first_cache() {
    for k in [1, 3, 16, 127, 128, 129, 160, 511, 512, 2048] {
        assert_eq!(cut_each(k, 256, ROOMY - 1), std::slice::from_ref(&(0..k)));
        let parts = cut_each(k, 256, ROOMY);
        assert!(parts.iter().cloned().flatten().eq(0..k), "{k}: {parts:?}");
        // Whole steps of four may be a little more.
        assert!(
            parts.iter().all(|part| !part.is_empty() && 256 * (part.len() - 1) <= EACH_BYTES + 2 * 256),
            "{parts:?}"
        );
    }
}

#[test]
fn scratch_memory_of_the_matrix_unit_suffices_for_fewer_rows() {
    for (taps, k, n) in
        [(1, 64, 256), (1, 288, 70), (9, 64, 64), (1, 1024, 512), (9, 512, 512), (1, 2048, 1000), (7, 21, 64)]
    {
        let extent = Extent { taps, k, n };
        assert!((1..600).all(|m| split::scratch(extent, m) <= split::scratch(extent, m + 1)), "{extent:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn machine_code_of_every_microkernel_multiplies_in_registers_alone() {
    use crate::simd::codegen;
    for &isa in Isa::available().iter().filter(|isa| isa.lanes() >= 8) {
        if let Some(narrow) = narrow::routine(isa) {
            let loops = codegen::loops(narrow as *const ());
            let products = 8 * narrow::SIDE;
            let main = codegen::with_products(&loops, isa, products, "narrow");
            assert!(main.moves == 0 || codegen::arithmetic_is_checked(), "narrow: {main:?}");
            loops.iter().for_each(|l| l.assert_in_registers("narrow", 0));
        }
        for vectors in 1..=micro::max_vectors(isa) {
            let what = format!("few rows, {vectors} registers, {}", isa.name());
            let loops = codegen::loops(few::routine(isa, vectors) as *const ());
            loops.iter().for_each(|l| l.assert_in_registers(&what, 0));
            for rows in 1..=few::most_rows(isa.registers()) {
                let products = |l: &codegen::Loop| l.fma.iter().sum::<usize>() == micro::STREAMS * rows * vectors;
                assert!(loops.iter().any(products), "{what}: {loops:?}");
            }
            for rows in 1..=micro::max_rows(isa, vectors) {
                let what = format!("{rows}×{vectors} {}", isa.name());
                let loops = codegen::loops(micro::micro(isa, rows, vectors, isa.lanes()) as *const ());
                // Four steps of k are written out; what remains of k has a loop of its own.
                let main = codegen::with_products(&loops, isa, 4 * rows * vectors, &what);
                assert!(main.moves == 0 || codegen::arithmetic_is_checked(), "{what}: {main:?}");
                loops.iter().for_each(|l| l.assert_in_registers(&what, 0));
                if isa.lanes() < 16 {
                    continue;
                }
                let (what, fma) = (format!("{what}, half of the last"), [4 * rows * (vectors - 1), 4 * rows]);
                let loops = codegen::loops(micro::micro(isa, rows, vectors, 8) as *const ());
                let found = loops.iter().any(|l| l.fma == fma) || codegen::arithmetic_is_checked();
                assert!(found, "{what}: no loop has {fma:?} multiply-adds: {loops:?}");
                loops.iter().for_each(|l| l.assert_in_registers(&what, 0));
            }
        }
    }
}
