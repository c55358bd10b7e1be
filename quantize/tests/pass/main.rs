//! Whole passes from a source to a file.

mod failures;
mod file;
mod recipes;
mod source;
