#![allow(missing_docs, clippy::print_stdout)]
use gristmill_quantize::network::*;
fn cpu() -> f64 {
    let mut ns = 0u64;
    for t in std::fs::read_dir("/proc/self/task").unwrap() {
        let s = std::fs::read_to_string(t.unwrap().path().join("schedstat")).unwrap();
        ns += s.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    }
    ns as f64 / 1e9
}
fn best(name: &str, reps: usize, mut f: impl FnMut()) -> f64 {
    let mut all: Vec<f64> = (0..reps)
        .map(|_| {
            let c = cpu();
            f();
            cpu() - c
        })
        .collect();
    all.sort_by(f64::total_cmp);
    println!("{name}: best {:.1} ms, median {:.1} ms", all[0] * 1e3, all[reps / 2] * 1e3);
    all[0]
}
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let source = gristmill_convert::HfCheckpoint::open(std::path::Path::new(&dir)).unwrap();
    for n in [512u32, 2048] {
        let reps = if n == 512 { 24 } else { 12 };
        let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 + 13) % 40000).collect();
        let x = embed(&source, &tokens).unwrap();
        let blocks =
            [BlockParams::load(&source, 0, 0).unwrap(), BlockParams::load(&source, 0, 1).unwrap()];
        let (mut f, mut b) = (0.0, 0.0);
        let w = Matrix::zeros(1536, 576);
        let g = best("gemm", reps, || drop(Matrix::multiply(&x, &w)));
        println!("  {:.1} GF/s", 2.0 * n as f64 * 576.0 * 1536.0 / g / 1e9);
        for block in &blocks {
            let mut y = x.clone();
            f += best("forward", reps, || {
                y.data_mut().copy_from_slice(x.data());
                forward(block, &mut y, 512, &mut |_, _| ())
            });
            b += best("backward", reps, || {
                y.data_mut().copy_from_slice(x.data());
                backward(block, &x, &mut y, 512, &mut |_, _, _| ())
            });
        }
        let head = Head::load(&source).unwrap();
        let h = best("head", reps / 6, || drop(head.sampled_loss_backward(&x, 1, &mut |_, _| ())));
        let n = f64::from(n);
        println!(
            "one core: forward {:.0} tok/s, forward+head+backward {:.0} tok/s",
            n / 30.0 / f,
            n / (30.0 * (f + b) + h)
        );
    }
}
