//! Where the names of points go.

/// A rectangle on the page: left, top, right, bottom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Rect {
    /// The square around a point.
    pub(super) fn around(x: f64, y: f64, radius: f64) -> Self {
        Self { left: x - radius, top: y - radius, right: x + radius, bottom: y + radius }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn is_within(&self, outer: &Self) -> bool {
        self.left >= outer.left
            && self.right <= outer.right
            && self.top >= outer.top
            && self.bottom <= outer.bottom
    }
}

/// Height of a label's line in pixels.
pub(super) const LINE: f64 = 12.0;
/// From a point's centre to its label.
const GAPS: [f64; 2] = [8.0, 17.0];

/// Finds places for labels, one by one: who comes first has the choice. A place that meets something
/// already there is not taken, one on a line only if there is no other, and a label without a place is
/// left out.
#[derive(Debug)]
pub(super) struct Placer {
    area: Rect,
    taken: Vec<Rect>,
    lines: Vec<Rect>,
}

impl Placer {
    /// Within an area in which some things stand already and lines run.
    pub(super) fn new(area: Rect, taken: Vec<Rect>, lines: Vec<Rect>) -> Self {
        Self { area, taken, lines }
    }

    /// The place for the label of a point.
    pub(super) fn place(&mut self, x: f64, y: f64, text: &str) -> Option<Rect> {
        let width = width(text);
        let half = LINE / 2.0;
        let candidates = GAPS.into_iter().flat_map(|gap| {
            let slant = gap * 0.6;
            [
                (x + gap, y - half),
                (x + slant, y - slant - LINE),
                (x + slant, y + slant),
                (x - width / 2.0, y - gap - LINE),
                (x - width / 2.0, y + gap),
                (x - gap - width, y - half),
                (x - slant - width, y - slant - LINE),
                (x - slant - width, y + slant),
            ]
        });
        self.first_free(candidates, width)
    }

    /// The place for the label of a horizontal line: at one of its ends, above or below.
    pub(super) fn place_on_line(&mut self, y: f64, text: &str) -> Option<Rect> {
        let width = width(text);
        let ends = [self.area.right - width, self.area.left + 4.0];
        let candidates =
            [y - LINE - 2.0, y + 2.0].into_iter().flat_map(|top| ends.map(|x| (x, top)));
        self.first_free(candidates, width)
    }

    fn first_free(
        &mut self,
        corners: impl Iterator<Item = (f64, f64)>,
        width: f64,
    ) -> Option<Rect> {
        let rect = |(left, top)| Rect { left, top, right: left + width, bottom: top + LINE };
        let meets = |some: &[Rect], rect: &Rect| some.iter().any(|other| other.overlaps(rect));
        let free = |rect: &Rect| rect.is_within(&self.area) && !meets(&self.taken, rect);
        let free: Vec<Rect> = corners.map(rect).filter(free).collect();
        let clear = free.iter().find(|rect| !meets(&self.lines, rect));
        let found = *clear.or(free.first())?;
        self.taken.push(found);
        Some(found)
    }
}

/// How wide a label of 11 pixels is in a wide font; what a reader's browser has is not known.
fn width(text: &str) -> f64 {
    let widths = text.chars().map(|c| match c {
        'i' | 'l' | 'I' | ' ' | '.' | ',' | ':' | '\'' => 3.6,
        'M' | 'W' | 'm' | 'w' => 10.0,
        'A'..='Z' | '&' | '<' | '>' => 8.0,
        '_' | '-' => 5.5,
        _ => 7.0,
    });
    widths.sum()
}

/// Little squares along a line.
pub(super) fn along(from: (f64, f64), to: (f64, f64)) -> impl Iterator<Item = Rect> {
    const STEP: f64 = 4.0;
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let steps = (dx.hypot(dy) / STEP).ceil().max(1.0) as usize;
    (0..=steps).map(move |i| {
        let share = i as f64 / steps as f64;
        Rect::around(from.0 + share * dx, from.1 + share * dy, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Rect = Rect { left: 0.0, top: 0.0, right: 200.0, bottom: 100.0 };

    #[test]
    fn labels_avoid_each_other_and_the_edges() {
        let points = [(20.0, 50.0), (26.0, 52.0), (190.0, 50.0), (100.0, 5.0)];
        let taken = points.map(|(x, y)| Rect::around(x, y, 5.0)).to_vec();
        let mut placer = Placer::new(AREA, taken.clone(), vec![]);
        let placed: Vec<Rect> =
            points.iter().map(|&(x, y)| placer.place(x, y, "84 MB").expect("room")).collect();
        for (i, a) in placed.iter().enumerate() {
            assert!(a.is_within(&AREA));
            assert!(taken.iter().chain(&placed[..i]).all(|b| !a.overlaps(b)), "{placed:?}");
        }
        // The one at the right edge stands to the left of its point.
        assert!(placed[2].right < 190.0);
    }

    #[test]
    fn a_label_without_room_is_left_out() {
        let mut placer = Placer::new(AREA, vec![AREA], vec![]);
        assert_eq!(placer.place(50.0, 50.0, "a"), None);
        let mut placer = Placer::new(AREA, vec![], vec![]);
        assert_eq!(placer.place(50.0, 50.0, &"long ".repeat(20)), None);
    }

    #[test]
    fn a_label_keeps_off_lines_where_it_can() {
        let line: Vec<Rect> = along((50.0, 50.0), (150.0, 50.0)).collect();
        let mut placer = Placer::new(AREA, vec![Rect::around(50.0, 50.0, 5.0)], line.clone());
        let place = placer.place(50.0, 50.0, "abc").expect("room");
        assert!(line.iter().all(|piece| !piece.overlaps(&place)), "{place:?}");
        // On the line rather than nowhere.
        let everywhere = vec![AREA];
        assert!(Placer::new(AREA, vec![], everywhere).place(50.0, 50.0, "abc").is_some());
    }

    #[test]
    fn the_label_of_a_line_stays_within_the_plot() {
        let mut placer = Placer::new(AREA, vec![], vec![]);
        let first = placer.place_on_line(95.0, "original").expect("room");
        assert!(first.bottom <= 95.0 && first.right == AREA.right);
        let second = placer.place_on_line(95.0, "original").expect("room");
        assert!(second.left < 10.0, "the other end");
    }
}
