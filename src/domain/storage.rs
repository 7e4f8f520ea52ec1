//! Room on a cluster for a workspace that is to outlive its pod. Pure.

/// Room for a workspace that is to outlive its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// As the cluster writes quantities: `10Gi`.
    pub size: String,
    /// Of the cluster's storage classes; its default where there is none.
    pub class: Option<String>,
}

impl Storage {
    /// `10Gi`, or `class:10Gi`.
    pub fn parse(text: &str) -> Option<Self> {
        let (class, size) = match text.split_once(':') {
            Some((class, size)) => (Some(class), size),
            None => (None, text),
        };
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        let unit = size.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &size[..size.len() - unit.len()];
        let is_size = number.parse::<u64>().is_ok_and(|number| number > 0)
            && ["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&unit);
        (is_size && class.is_none_or(is_name)).then(|| Self { size: size.to_owned(), class: class.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_a_size_with_or_without_a_class() {
        let of = |size: &str, class: Option<&str>| Some(Storage { size: size.into(), class: class.map(str::to_owned) });
        assert_eq!(Storage::parse("10Gi"), of("10Gi", None));
        assert_eq!(Storage::parse("fast-ssd:500M"), of("500M", Some("fast-ssd")));
        for wrong in ["", "0Gi", "Gi", "10Xi", "10 Gi", ":10Gi", "A:1Gi", "-1Gi", "1Gi:fast"] {
            assert_eq!(Storage::parse(wrong), None, "{wrong}");
        }
    }
}
