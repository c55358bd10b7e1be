//! Ctrl-C.

#![cfg(unix)]

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Said, gristmill, scratch, slow_checkpoint, str};

/// What Ctrl-C does.
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

#[test]
fn an_interrupted_quantize_leaves_nothing() {
    let directory = scratch();
    let model = slow_checkpoint(directory.path());
    let output = directory.path().join("m.grist");
    let partial = directory.path().join("m.grist.partial");
    let mut command = gristmill(&["quantize", str(&model), "-o", str(&output)]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !partial.exists() {
        assert!(Instant::now() < deadline, "it never began to write");
        std::thread::sleep(Duration::from_millis(2));
    }
    interrupt(&child);
    let said = Said::from(child.wait_with_output().unwrap()).expect(130);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "interrupted\n"));
    assert!(!partial.exists() && !output.exists());
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [model]);
}

#[test]
fn an_interrupted_run_prints_what_it_has() {
    let directory = scratch();
    let model = slow_checkpoint(directory.path());
    let endless = ["run", str(&model), "-p", "A", "-n", "8000", "--ctx", "8192", "--temp", "1"];
    let mut command = gristmill(&endless);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("generated"), "{stderr}");
}
