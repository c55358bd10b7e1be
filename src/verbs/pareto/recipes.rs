//! Recipes: a name, and what `quantize` takes or a packed file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Deserialize;

use crate::args::{ParetoArgs, RecipeArgs, RoundingArgs};
use crate::error::{Usage, WithHint};
use crate::verbs::quantize::plain_recipe;

/// What is measured when no recipe is given: 8 bits, then whole files by bits per weight, calibrated.
const LADDER: [&str; 9] = [
    "--bits 8",
    "--bpw 6.5",
    "--bpw 5.5",
    "--bpw 5",
    "--bpw 4.5",
    "--bpw 4",
    "--bpw 3.5",
    "--bpw 3",
    "--bpw 2.3",
];

/// How to get a file to measure.
#[derive(Debug, Clone)]
pub(super) struct NamedRecipe {
    pub(super) name: String,
    pub(super) how: How,
}

/// Whether a file is made or is there.
#[derive(Debug, Clone)]
pub(super) enum How {
    Make(Box<RoundingArgs>),
    Take(PathBuf),
}

/// A recipe in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    args: Option<Words>,
    file: Option<PathBuf>,
}

/// Arguments as one line or one by one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Line(String),
    List(Vec<String>),
}

/// The recipes that the arguments ask for, in their order.
pub(super) fn recipes(args: &ParetoArgs) -> Result<Vec<NamedRecipe>> {
    let mut recipes = Vec::new();
    for text in &args.recipes {
        recipes.push(parse(text)?);
    }
    if let Some(path) = &args.recipes_file {
        recipes.extend(read(path)?);
    }
    if is_ladder(args) {
        recipes = LADDER.into_iter().map(parse).collect::<Result<_>>()?;
    }
    for recipe in &mut recipes {
        if let How::Make(rounding) = &mut recipe.how
            && rounding.calib.is_none()
        {
            rounding.calib.clone_from(&args.calib);
        }
    }
    check_names("recipes", recipes.iter().map(|recipe| recipe.name.as_str()))?;
    Ok(recipes)
}

/// Whether no recipe is asked for.
pub(super) fn is_ladder(args: &ParetoArgs) -> bool {
    args.recipes.is_empty() && args.recipes_file.is_none()
}

/// Names become names of files, so they must differ as such.
pub(super) fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    for name in names {
        let file = file_name(name);
        if let Some((_, other)) = seen.iter().find(|(seen, _)| *seen == file) {
            let error = Usage(format!("two {what} are called `{other}` and `{name}`"));
            return Err(error).hint("give one another name: NAME=... before it");
        }
        seen.push((file, name));
    }
    Ok(())
}

/// A name as that of a file: letters, digits and a few signs.
pub(super) fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    let name: String = name.chars().map(|c| if plain(c) { c } else { '-' }).collect();
    // No hidden files, and nothing that leads out of a directory.
    let name = name.trim_matches(['.', '-']);
    if name.is_empty() { "unnamed".into() } else { name.to_lowercase() }
}

/// `[NAME=]ARGS` or `[NAME=]file=FILE`.
fn parse(text: &str) -> Result<NamedRecipe> {
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) if !name.trim_start().starts_with('-') && name.trim() != "file" => {
            (Some(name.trim().to_owned()), rest.trim())
        }
        _ => (None, text.trim()),
    };
    if let Some(name) = &name
        && name.is_empty()
    {
        return Err(Usage(format!("recipe `{text}`: its name is empty")).into());
    }
    match rest.strip_prefix("file=") {
        Some("") => Err(Usage(format!("recipe `{text}`: no file is named")).into()),
        Some(file) => Ok(take(name, PathBuf::from(file))),
        None => make(name, &split(rest).map_err(|e| Usage(format!("recipe `{text}`: {e}")))?),
    }
}

/// The recipes of a file.
fn read(path: &Path) -> Result<Vec<NamedRecipe>> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let entries: Vec<Entry> = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: not a list of recipes"))
        .hint("expected [{\"name\": \"small\", \"args\": \"--bpw 3\"}, {\"file\": \"m.grist\"}]")?;
    let parse = |entry: Entry| match (entry.args, entry.file) {
        (Some(Words::Line(line)), None) => make(entry.name, &split(&line).map_err(Usage)?),
        (Some(Words::List(words)), None) => make(entry.name, &words),
        (None, Some(file)) => Ok(take(entry.name, file)),
        _ => bail!("it needs either `args` or `file`"),
    };
    let recipes = entries.into_iter().enumerate().map(|(i, entry)| {
        let name = entry.name.clone().unwrap_or_else(|| (i + 1).to_string());
        parse(entry).with_context(|| format!("{shown}: recipe {name}"))
    });
    recipes.collect()
}

fn take(name: Option<String>, file: PathBuf) -> NamedRecipe {
    let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    NamedRecipe { name: name.unwrap_or_else(stem), how: How::Take(file) }
}

/// A recipe from arguments of `quantize`, read as it reads them.
fn make(name: Option<String>, words: &[String]) -> Result<NamedRecipe> {
    let name = name.unwrap_or_else(|| usual_name(words));
    let parsed = RecipeArgs::try_parse_from(words).map_err(|error| {
        // The first paragraph says what is wrong; usage of a verb that nobody called would mislead.
        let text = error.to_string();
        let message = text.split("\n\n").next().unwrap_or_default().trim();
        Usage(format!("recipe `{name}`: {}", message.trim_start_matches("error: ")))
    });
    let RecipeArgs { rounding } =
        parsed.hint("a recipe takes what says how `gristmill quantize` rounds, or file=FILE")?;
    plain_recipe(&rounding).with_context(|| format!("recipe `{name}`"))?;
    Ok(NamedRecipe { name, how: How::Make(Box::new(rounding)) })
}

/// The name of a recipe that has none: `84MB`, `4 bits gptq`, `3 bpw tune 3`.
fn usual_name(words: &[String]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut words = words.iter().flat_map(|word| match word.split_once('=') {
        Some((option, value)) if option.starts_with("--") => vec![option, value],
        _ => vec![word.as_str()],
    });
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default().to_owned();
        match word {
            "--bits" => parts.push(format!("{} bits", value())),
            "--bpw" => parts.push(format!("{} bpw", value())),
            "--size" | "--method" | "--objective" | "--codec" => parts.push(value()),
            // Where the text is does not tell recipes apart; how much of it does.
            "--calib" => drop(value()),
            other => parts.push(other.trim_start_matches('-').to_owned()),
        }
    }
    if parts.is_empty() { "4 bits".into() } else { parts.join(" ") }
}

/// Words as a shell separates them: quotes keep blanks, a backslash keeps what follows it.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("it ends in a backslash".into()),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("the quote {quote} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_separated_as_in_a_shell() {
        let words = |line: &str| split(line).unwrap();
        assert_eq!(words("  --bits 4\t--calib 'a b'  "), ["--bits", "4", "--calib", "a b"]);
        assert_eq!(words(r#"--codec "a \" b"=q8 c\ d ''"#), ["--codec", "a \" b=q8", "c d", ""]);
        assert_eq!(words(r"'\d'"), [r"\d"]);
        assert!(split("--calib 'a").unwrap_err().contains("not closed"));
        assert!(split("a\\").is_err());
    }

    #[test]
    fn recipes_have_the_names_that_users_would_give() {
        for (text, name) in [
            ("--bits 4", "4 bits"),
            ("--bits=3 --method gptq --calib /a/b.txt", "3 bits gptq"),
            ("--size 84MB --calib-tokens 16384", "84MB calib-tokens 16384"),
            ("--bpw 2.3 --tune 3", "2.3 bpw tune 3"),
            ("small=--bpw 3", "small"),
            ("--bits 4 --codec ^embed$=q8", "4 bits ^embed$=q8"),
            ("file=x/mine.grist", "mine"),
            ("theirs = file=x/a=b.grist", "theirs"),
            ("", "4 bits"),
        ] {
            assert_eq!(parse(text).unwrap().name, name, "{text}");
        }
        let How::Take(path) = parse("theirs=file=x/a=b.grist").unwrap().how else { panic!() };
        assert_eq!(path, Path::new("x/a=b.grist"));
    }

    #[test]
    fn a_bad_recipe_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error("tiny=--bits x").contains("recipe `tiny`: invalid value 'x'"));
        assert!(error("--bits 7").contains("recipe `7 bits`"));
        assert!(error("--bits 4 -o here").contains("unexpected argument '-o'"));
        assert!(error("--gguf q4_0").contains("--gguf"));
        assert!(error("=--bits 4").contains("name is empty"));
        assert!(error("a='").contains("not closed"));
    }

    #[test]
    fn names_of_files_are_plain_and_differ() {
        assert_eq!(file_name("4 bits, ^embed$=q8"), "4-bits---embed--q8");
        assert_eq!(file_name("../../x"), "x");
        assert_eq!(file_name("…"), "unnamed");
        assert!(check_names("recipes", ["a b", "a c"].into_iter()).is_ok());
        let error = check_names("recipes", ["a b", "A-b"].into_iter()).unwrap_err();
        assert!(error.to_string().contains("`a b` and `A-b`"), "{error}");
    }

    #[test]
    fn files_hold_recipes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recipes.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read(&path)
        };
        let recipes = read(
            r#"[{"args": "--bits 4"}, {"name": "b", "args": ["--bits", "3"]}, {"file": "c.grist"}]"#,
        );
        let names: Vec<String> = recipes.unwrap().into_iter().map(|recipe| recipe.name).collect();
        assert_eq!(names, ["4 bits", "b", "c"]);
        let error = |text: &str| format!("{:#}", read(text).unwrap_err());
        assert!(error(r#"[{"name": "x"}]"#).contains("recipe x: it needs"));
        assert!(error(r#"[{"arguments": "x"}]"#).contains("arguments"));
        assert!(error(r#"[{"args": "--bits 4"}, {"args": "--bits 9"}]"#).contains("recipe 2"));
    }

    #[test]
    fn the_ladder_is_valid() {
        for text in LADDER {
            parse(text).unwrap();
        }
    }
}
