//! Medians, and tables in Markdown.

/// The median: the middle value, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The difference between the highest and the lowest, in percent of the median. A smaller difference between servers
/// means nothing.
pub fn spread(values: &[f64]) -> f64 {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (highest - lowest) / median(values.iter().copied()) * 100.0
}

/// Prints a table whose first column is text and whose others are numbers.
pub fn print(headings: &[&str], rows: &[Vec<String>]) {
    println!("| {} |", headings.join(" | "));
    println!("|---{}|", "|---:".repeat(headings.len().saturating_sub(1)));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}

/// A whole number with a comma before each group of three digits.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
