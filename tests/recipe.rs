//! The Rust recipe draws the very bits the Python one drew: otherwise no golden means anything.

mod common;

use common::{golden_json, knobs, recipe, sizes};

fn fnv_of(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    format!("{:016x}", recipe::fnv1a(&bytes))
}

#[test]
fn values_equal_pythons_bit_for_bit() {
    let wanted = golden_json("recipe.json");
    let knobs = knobs(&wanted);
    for parameter in wanted["parameters"].as_array().unwrap() {
        let (name, shape) = (parameter["name"].as_str().unwrap(), sizes(&parameter["shape"]));
        let mut values = vec![0.0; shape.iter().product()];
        recipe::parameter(name, &shape, &knobs, &mut values);
        assert_eq!(fnv_of(&values), parameter["fnv"].as_str().unwrap(), "{name}");
    }
    let image = recipe::image([2, 3, 37, 29], 64.0, "input");
    assert_eq!(fnv_of(image.as_slice()), wanted["image_fnv"].as_str().unwrap());
}
