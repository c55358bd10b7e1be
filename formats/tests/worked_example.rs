//! The worked example of FORMAT.md is what the writer writes.

use std::fmt::Write as _;
use std::path::Path;

use gristmill_formats::codec::{BLOCK_COLS, Codec, NamedGrid, QuantizedRow};
use gristmill_formats::container::{Header, PackedFile, PackedWriter, Provenance};
use gristmill_formats::model::{ModelSpec, NormSpec};
use gristmill_formats::source::{GenerationDefaults, ModelSource, TextAssets};
use half::bf16;

const BEGIN: &str = "<!-- worked example -->\n";
const END: &str = "<!-- end of worked example -->\n";

fn write_example(path: &Path) -> Header {
    let model = ModelSpec {
        architecture: "example".into(),
        vocab_size: 2,
        d_model: 4,
        max_context: 8,
        embedding_scale: 1.0,
        tied_head: true,
        logit_softcap: None,
        final_norm: NormSpec { eps: 1e-5, plus_one: false },
        layers: Vec::new(),
    };
    let codec = Codec::Table(NamedGrid::Int4.grid());
    // Row 0 is 2 x 3 x table[1, 2, 3, 4]; row 1 is 1 x 5 x (table + shift)[15, 14, 13, 12].
    let row = |scale: f32, block_scale: u8, first: [u8; 4]| {
        let mut codes = vec![0u8; BLOCK_COLS];
        codes[..4].copy_from_slice(&first);
        QuantizedRow { row_scale: bf16::from_f32(scale), block_scales: vec![block_scale], codes }
    };
    let rows = [row(2.0, 3, [1, 2, 3, 4]), row(1.0, 5 | 0x80, [15, 14, 13, 12])];
    let mut panel = vec![0u8; codec.panel_bytes(4)];
    codec.pack_panel(&rows, 4, &mut panel);

    let mut writer = PackedWriter::create(path).expect("the file is created");
    writer.begin_tensor("embed", &[2, 4], &codec).expect("the tensor begins");
    writer.write(&panel).expect("the panel is written");
    writer.end_tensor();
    writer.begin_tensor("final_norm", &[4], &Codec::F32).expect("the tensor begins");
    writer.write(&Codec::F32.encode_linear(&[1.0, 0.5, -1.0, 2.0])).expect("the norm is written");
    writer.end_tensor();
    let header = Header {
        model,
        tensors: Vec::new(),
        tokenizer: None,
        text: TextAssets::default(),
        generation: GenerationDefaults::default(),
        provenance: Provenance::default(),
        quality: None,
    };
    writer.finish(header).expect("the file is complete")
}

/// Lines of 16 bytes; runs of zero lines are one line.
fn hex(bytes: &[u8], start: usize, out: &mut String) {
    let mut skipped = 0;
    for (i, line) in bytes.chunks(16).enumerate() {
        if line.iter().all(|&b| b == 0) {
            skipped += line.len();
            continue;
        }
        flush(&mut skipped, out);
        let digits: Vec<_> = line.iter().map(|b| format!("{b:02x}")).collect();
        let text = line.iter().map(|&b| if b.is_ascii_graphic() { b as char } else { '.' });
        let text = text.collect::<String>();
        writeln!(out, "{:06x}  {:<47}  {text}", start + 16 * i, digits.join(" "))
            .expect("a string");
    }
    flush(&mut skipped, out);
}

fn flush(skipped: &mut usize, out: &mut String) {
    if *skipped > 0 {
        writeln!(out, "        {skipped} zero bytes").expect("a string");
        *skipped = 0;
    }
}

fn render(bytes: &[u8], header: &Header, file: &PackedFile) -> String {
    let mut out = String::from("\n");
    let mut part = |title: &str, range: std::ops::Range<usize>| {
        write!(out, "{title}:\n\n```\n").expect("a string");
        hex(&bytes[range.clone()], range.start, &mut out);
        out.push_str("```\n\n");
    };
    part("The superblock", 0..128);
    let [embed, norm] = &header.tensors[..] else { panic!("two tensors") };
    let range = |t: &gristmill_formats::container::TensorEntry| {
        t.offset as usize..(t.offset + t.bytes) as usize
    };
    part(
        "`embed`, one q4 panel: row scales 2.0 and 1.0, block scales 3 and 5 with the shift bit, then codes \
         (low nibbles are columns 0 to 3 of rows 0 and 1)",
        range(embed),
    );
    part("`final_norm`, four f32", range(norm));
    let superblock = file.superblock();
    let start = superblock.header_offset as usize;
    let end = start + superblock.header_bytes as usize;
    let json = std::str::from_utf8(&bytes[start..end]).expect("JSON is text");
    let mut wrapped = String::new();
    for line in json.as_bytes().chunks(120) {
        wrapped.push_str(std::str::from_utf8(line).expect("the example is ASCII"));
        wrapped.push('\n');
    }
    write!(out, "The header, at {start:06x}, wrapped here:\n\n```json\n{wrapped}```\n\n")
        .expect("a string");
    let footer = superblock.footer_offset() as usize;
    let mut tail = String::new();
    hex(&bytes[footer + 128..], footer + 128, &mut tail);
    write!(out, "The end of the footer, after the superblock's copy:\n\n```\n{tail}```\n\n")
        .expect("a string");
    let mut row = [0.0; 4];
    let tensor = file.tensor("embed").expect("the tensor is there");
    for r in 0..2 {
        tensor.decode_row(r, &mut row);
        writeln!(out, "Row {r} of `embed` decodes to {row:?}.").expect("a string");
    }
    out.push('\n');
    out
}

#[test]
fn the_example_in_format_md_is_what_the_writer_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("example.grist");
    let header = write_example(&path);
    let file = PackedFile::open(&path).expect("the file opens");
    let example = render(file.bytes(), &header, &file);

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../FORMAT.md");
    let text = std::fs::read_to_string(&page).expect("FORMAT.md");
    let (before, rest) = text.split_once(BEGIN).expect("the example's begin");
    let (found, after) = rest.split_once(END).expect("the example's end");
    if std::env::var_os("UPDATE_FORMAT_MD").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{example}{END}{after}")).expect("FORMAT.md");
    } else {
        assert!(
            found == example,
            "FORMAT.md differs from the writer; see the page for the command"
        );
    }
}
