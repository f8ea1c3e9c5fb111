//! `portolan-proxy plan` on folders of manifests, against golden files: `tests/golden/NAME/*.yaml` and `NAME.txt`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p portolan-proxy --test golden` writes the files anew; read the difference.

use std::path::Path;
use std::process::Command;

fn check(name: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let state = tempfile::tempdir().expect("a folder for allocations");
    let output = Command::new(env!("CARGO_BIN_EXE_portolan-proxy"))
        .args(["plan", "--node-name", "n1", "--manifests"])
        .arg(golden.join(name))
        .arg("--state-dir")
        .arg(state.path())
        .output()
        .expect("portolan-proxy runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
    let found = String::from_utf8(output.stdout).expect("text");
    let file = golden.join(name).with_extension("txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &found).expect("a golden file");
    }
    let expected = std::fs::read_to_string(&file).expect("a golden file");
    assert_eq!(found, expected, "{}", file.display());
}

#[test]
fn shop() {
    check("shop");
}

#[test]
fn policies() {
    check("policies");
}
