//! Digits as characters: two a pixel, since a character is about twice as high as wide.

/// From paper to ink.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
/// Pixels a side.
const SIDE: usize = 8;
/// Blanks between two digits.
const GAP: &str = "  ";

/// Digits side by side with a caption below each; a digit is 64 pixels from 0 to 1, row after row.
pub(crate) fn side_by_side(digits: &[(&[f32], String)]) -> String {
    let mut lines: Vec<String> =
        (0..SIDE).map(|y| digits.iter().map(|(pixels, _)| row(pixels, y)).collect::<Vec<_>>().join(GAP)).collect();
    let captions = digits.iter().map(|(_, caption)| format!("{caption:^width$}", width = 2 * SIDE));
    lines.push(captions.collect::<Vec<_>>().join(GAP));
    lines.iter().map(|l| l.trim_end()).collect::<Vec<_>>().join("\n")
}

fn row(pixels: &[f32], y: usize) -> String {
    let row = pixels.get(y * SIDE..(y + 1) * SIDE).unwrap_or_default();
    row.iter().flat_map(|p| [shade(*p); 2]).collect()
}

fn shade(pixel: f32) -> char {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 4")]
    let index = (pixel.clamp(0.0, 1.0) * 4.0).round() as usize;
    SHADES[index]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_drawn_where_it_is() {
        let mut pixels = [0.0f32; 64];
        for y in 0..8 {
            pixels[y * 8 + 1] = 1.0;
        }
        let drawn = side_by_side(&[(&pixels, "1".into()), (&pixels, "7 ✗".into())]);
        let lines: Vec<_> = drawn.lines().collect();
        assert_eq!(lines.len(), 9);
        assert_eq!(lines[0], "  ██                ██");
        assert_eq!(lines[8].split_whitespace().collect::<Vec<_>>(), ["1", "7", "✗"]);
    }
}
