//! Whole passes from a source to a file.

mod calibration;
mod degenerate;
mod failures;
mod file;
mod methods;
mod progress;
mod recipes;
mod resume;
mod size;
mod source;
mod tuning;
