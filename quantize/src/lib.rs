//! Quantization of a checkpoint into a packed file.
//!
//! A [`Recipe`] says which codec each tensor gets, [`plan_source`] what that will weigh, and [`quantize()`]
//! does it: tensors stream from a source through a [`RowRounder`] into the packed file, which appears
//! under its name complete or not at all.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod error;
mod levels;
mod output;
mod plan;
mod quantize;
mod recipe;
mod report;
mod rtn;

pub use error::{QuantizeError, Result};
pub use plan::{PartBytes, Plan, TensorPlan, plan, plan_source};
pub use quantize::{MAX_BATCH_BYTES, Metadata, quantize};
pub use recipe::{Method, Override, Recipe};
pub use report::{REPORT_SCHEMA_VERSION, Report, TensorReport};
pub use rtn::{MAX_MAGNITUDE, RowRounder};
