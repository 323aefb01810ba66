//! Burn runs no files: its code is generated here, from every network of batch 1 in `$PEERS_NETWORKS`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "burn")]
    burn();
}

#[cfg(feature = "burn")]
fn burn() {
    use std::fmt::Write;
    println!("cargo::rerun-if-env-changed=PEERS_NETWORKS");
    let folder = std::env::var("PEERS_NETWORKS").expect("PEERS_NETWORKS names the folder that export.py wrote");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed={folder}");
    let files = std::fs::read_dir(&folder).expect("a folder of networks").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = files
        .filter_map(|file| file.to_str()?.strip_suffix("_b1.onnx").map(str::to_owned))
        .collect();
    names.sort();
    let (mut modules, mut arms, mut generator) = (String::new(), String::new(), burn_onnx::ModelGen::new());
    for name in &names {
        generator.input(&format!("{folder}/{name}_b1.onnx"));
        writeln!(modules, "mod {name} {{ include!({:?}); }}", format!("{out}/burn/{name}_b1.rs")).expect("a string");
        let weights = format!("{out}/burn/{name}_b1.bpk");
        writeln!(
            arms,
            "{name:?} => {{ let m = {name}::Model::from_file({weights:?}, device); Some(Box::new(move |x| m.forward(x))) }}"
        )
        .expect("a string");
    }
    generator.out_dir("burn/").run_from_script();
    let code = format!(
        "{modules}\nfn network(name: &str, device: &Device) -> Option<Network> {{ match name {{ {arms} _ => None }} }}"
    );
    std::fs::write(format!("{out}/burn.rs"), code).expect("cargo's folder can be written to");
}
