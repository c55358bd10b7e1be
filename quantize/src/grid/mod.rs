//! Formats as grids that rows are rounded to while error feedback moves the weights.

pub(crate) mod gguf;
mod gguf_search;
mod gguf_super;
#[cfg(test)]
mod gguf_tests;
pub(crate) mod packed;

/// A format that a row of weights is rounded to, one group of columns at a time. Error feedback
/// changes the weights of a group after the row was started and before the group is fitted.
pub(crate) trait RowGrid: Sync {
    /// A row being rounded: scales chosen so far and codes.
    type Row: Send + Sync + Clone;
    /// Columns that share the finest scale: the unit of `fit`.
    const GROUP: usize = 32;
    /// Starts a row: chooses what spans groups (row scale, superblock scale) by searching for the
    /// weights as they are. Importance: non-negative weight per column of the squared error.
    fn start(&self, row: &[f32], importance: &[f32]) -> Self::Row;
    /// Chooses the scale (and minimum) of group `group` for `x` (GROUP values or fewer at the end
    /// of a row).
    fn fit(&self, row: &mut Self::Row, group: usize, x: &[f32], importance: &[f32]);
    /// Rounds `x` at column `col` to the nearest value of its (fitted) group, stores the code,
    /// returns the value exactly as a reader decodes it.
    fn round(&self, row: &mut Self::Row, col: usize, x: f32) -> f32;
    /// The value stored at a column.
    fn value(&self, row: &Self::Row, col: usize) -> f32;
    /// Multiplies what spans the whole row by about `factor`, codes and finer scales staying as they
    /// are; returns the factor as stored, 1 where a format has nothing that spans a row.
    fn rescale(&self, _row: &mut Self::Row, _factor: f32) -> f32 {
        1.0
    }
}
