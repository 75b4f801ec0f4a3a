//! Tables as kubectl prints them. Pure.

/// The row whose first column is, or begins with, a name, as its columns.
pub fn row<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|columns| columns.first().is_some_and(|first| first.starts_with(name)))
}

/// What is missing of `wanted`: a name, or its beginning, and the columns that have to follow it.
pub fn missing(table: &str, wanted: &[(&str, &[&str])]) -> Vec<String> {
    wanted
        .iter()
        .filter_map(|(name, columns)| match row(table, name) {
            Some(found) if found[1..].starts_with(columns) => None,
            Some(found) => Some(format!("{} instead of {}", found.join(" "), columns.join(" "))),
            None => Some(format!("no {name}")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: &str = "NAME                 READY   STATUS    RESTARTS   AGE
fabedge-agent-edge1  1/2     Running   0          22s
fabedge-connector-5947d5f66-hnfbv   2/2     Running   0          35m
";

    #[test]
    fn a_row_is_found_by_the_beginning_of_its_name() {
        assert_eq!(row(PODS, "fabedge-connector-").unwrap()[1], "2/2");
        let wanted: [(&str, &[&str]); 3] = [
            ("fabedge-connector-", &["2/2", "Running"]),
            ("fabedge-agent-edge1", &["2/2", "Running"]),
            ("fabedge-agent-edge2", &["2/2"]),
        ];
        assert_eq!(
            missing(PODS, &wanted),
            [
                "fabedge-agent-edge1 1/2 Running 0 22s instead of 2/2 Running",
                "no fabedge-agent-edge2"
            ]
        );
    }
}
