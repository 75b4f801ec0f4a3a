//! A report as a picture: a panel for each series, a line for each mode, with the middle half of its samples.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Report, Series, shown};

/// Size of a panel.
const PANEL: (u32, u32) = (620, 400);

/// Most panels side by side.
const COLUMNS: usize = 2;

const FONT: &str = "sans-serif";

/// Draws a report.
///
/// # Errors
/// When the picture cannot be drawn.
pub fn svg(report: &Report) -> Result<String> {
    let columns = report.series.len().clamp(1, COLUMNS);
    let rows = report.series.len().div_ceil(columns).max(1);
    let mut picture = String::new();
    {
        let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        let failed =
            |error: &dyn std::fmt::Display| anyhow!("drawing the figures of {}: {error}", report.subset);
        root.fill(&WHITE).map_err(|error| failed(&error))?;
        for (series, area) in report.series.iter().zip(root.split_evenly((rows, columns))) {
            panel(series, &area).map_err(|error| failed(&error))?;
        }
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(picture)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn panel(series: &Series, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    // Places on the axis are as far apart as the next, for they grow by factors.
    let places = series.places();
    let position = |at: f64| {
        places
            .iter()
            .position(|place| *place == at)
            .map(|index| index as f64)
    };
    let figures = series.modes.iter().flat_map(|mode| &mode.points);
    let top = figures.map(|point| point.summary.upper).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{} ({})", series.title, series.unit), (FONT, 15))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.2..places.len() as f64 - 0.8, 0.0..top.max(1e-9) * 1.1)?;
    let label = |position: &f64| {
        let near = position.round();
        let place = (near - position).abs() < 1e-6 && near >= 0.0;
        let at = place.then(|| places.get(near as usize)).flatten();
        at.map_or(String::new(), f64::to_string)
    };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(places.len() * 2)
        .x_label_formatter(&label)
        .y_label_formatter(&|value| shown(*value))
        .x_desc(&series.axis)
        .label_style((FONT, 11))
        .draw()?;
    for (index, mode) in series.modes.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points: Vec<(f64, &super::report::Summary)> = mode
            .points
            .iter()
            .filter_map(|point| Some((position(point.at)?, &point.summary)))
            .collect();
        let medians = points.iter().map(|(x, summary)| (*x, summary.median));
        chart
            .draw_series(LineSeries::new(medians.clone(), color.stroke_width(2)))?
            .label(&mode.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        chart.draw_series(medians.map(|at| Circle::new(at, 3, color.filled())))?;
        let middle = points.iter().map(|(x, summary)| {
            PathElement::new([(*x, summary.lower), (*x, summary.upper)], color.stroke_width(1))
        });
        chart.draw_series(middle)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 11))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

    use super::*;

    #[test]
    fn every_series_and_mode_is_in_the_picture() {
        let mut report = Report::new("lookup", "how long it takes");
        for title in ["IPv4, random", "IPv6, random"] {
            let mut series = Series::new(title, "ns", "routes", &["trie", "ours"]);
            for (at, value) in [(10.0, 20.0), (262_144.0, 1300.0)] {
                series.sample("trie", at, value);
                series.sample("ours", at, value / 50.0);
            }
            report.series.push(series);
        }
        let picture = svg(&report).unwrap();
        for text in ["IPv4, random (ns)", "IPv6, random (ns)", "trie", "ours", "262144"] {
            assert!(picture.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn a_report_without_figures_is_an_empty_picture() {
        assert!(
            svg(&Report::new("nothing", "no figures"))
                .unwrap()
                .contains("<svg")
        );
    }
}
