//! Quantization of a checkpoint into a packed file.
//!
//! A [`Recipe`] says which codec each tensor gets, [`plan_source`] what that will weigh, and [`quantize()`]
//! does it: tensors stream from a source through a [`RowRounder`] into the packed file, which appears
//! under its name complete or not at all.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod allocate;
mod awq;
mod calibrate;
mod error;
mod fold;
mod gguf_export;
mod gguf_types;
mod grid;
mod hessian;
mod ldlq;
mod levels;
pub mod network;
mod output;
mod pass;
mod plan;
mod quantize;
mod recipe;
mod refine;
mod report;
mod rtn;
#[cfg(test)]
mod testing;
mod tune;

pub use calibrate::{Calibration, RoundedTensor, Swap};
pub use error::{QuantizeError, Result};
pub use fold::{FoldedSource, Folds};
pub use gguf_export::{GgufExport, RoundedRows, Weights, round_row};
pub use gguf_types::GgufFileType;
pub use hessian::Fallback;
pub use pass::MAX_BATCH_BYTES;
pub use plan::{PartBytes, Plan, TensorPlan, plan, plan_source};
pub use quantize::{Metadata, quantize};
pub use recipe::{Method, Objective, Override, Recipe};
pub use report::{CalibrationReport, REPORT_SCHEMA_VERSION, Report, TensorReport};
pub use rtn::{MAX_MAGNITUDE, RowRounder};
pub use tune::TuningReport;
