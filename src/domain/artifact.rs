//! Artifacts: what a job made that is too large, or not text, to stand in its result. They are
//! cut out of upstream's answer here, named, typed by their bytes, and shown inline or by URL.
//!
//! Results and artifacts are bytes, never PostgreSQL's `text` or `jsonb`: a model may well say
//! U+0000, which is sound JSON and sound UTF-8 and which those refuse.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::signing;

/// Bytes that are shown in place; more are fetched.
pub const INLINE_MAX: usize = 262_144;
/// Where a result goes that is larger than that.
pub const RESULT_NAME: &str = "result.json";

const NAME_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub name: String,
    pub content_type: String,
    pub data: Vec<u8>,
}

/// A job's result without what became artifacts.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// At most [`INLINE_MAX`] bytes as compact JSON, which is how it is to be stored.
    pub result: Value,
    /// Images in their order, then the result where it was too large.
    pub artifacts: Vec<Artifact>,
}

/// Takes the images, and a result that is too large, out of upstream's whole answer.
pub fn split_result(mut whole: Value) -> Split {
    let mut artifacts = take_images(&mut whole);
    let data = serde_json::to_vec(&whole).expect("a JSON value can be written");
    if data.len() <= INLINE_MAX {
        return Split { result: whole, artifacts };
    }
    let result = json!({ "artifact": RESULT_NAME, "size": data.len() });
    artifacts.push(Artifact { name: RESULT_NAME.to_owned(), content_type: "application/json".to_owned(), data });
    Split { result, artifacts }
}

/// `{name, content_type, size, data?, url?, encoding?}`: what is small shows its bytes, as text
/// where they are UTF-8, else as base64; what is large, or has no `data` at hand, its `url`.
pub fn view(name: &str, content_type: &str, size: usize, data: Option<&[u8]>, url: &str) -> Value {
    let mut shown = json!({ "name": name, "content_type": content_type, "size": size });
    match data.filter(|_| size <= INLINE_MAX) {
        None => shown["url"] = url.into(),
        Some(data) => match std::str::from_utf8(data) {
            Ok(text) => shown["data"] = text.into(),
            Err(_) => {
                shown["data"] = STANDARD.encode(data).into();
                shown["encoding"] = "base64".into();
            }
        },
    }
    shown
}

/// `^[A-Za-z0-9._-]{1,128}$` and neither `.` nor `..`. Any other names nothing.
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(allowed) && !matches!(text, "." | "..")
}

/// A strong entity tag, quotes included.
pub fn etag(data: &[u8]) -> String {
    format!("\"{}\"", signing::hex(&Sha256::digest(data)))
}

/// Extension and content type as the first bytes tell; what they do not tell is `bin`.
pub fn sniff(data: &[u8]) -> (&'static str, &'static str) {
    match data {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => ("png", "image/png"),
        [0xff, 0xd8, 0xff, ..] => ("jpg", "image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ("gif", "image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ("webp", "image/webp"),
        // The four bytes before the pixels' offset are reserved; two letters alone begin many a text.
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, _, _, _, _, 12..=124, 0, 0, 0, ..] => ("bmp", "image/bmp"),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => ("tiff", "image/tiff"),
        [0, 0, 1, 0, 1..=255, 0, ..] => ("ico", "image/vnd.microsoft.icon"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => sniff_container(data),
        _ if is_svg(data) => ("svg", "image/svg+xml"),
        _ => UNKNOWN,
    }
}

const UNKNOWN: (&str, &str) = ("bin", "application/octet-stream");

/// The brands in the first box of an ISO media file: the major one, its version, compatible ones.
fn sniff_container(data: &[u8]) -> (&'static str, &'static str) {
    let length = data.first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
    let length = usize::try_from(length).map_or(data.len(), |length| length.min(data.len()));
    let mut brands = data[..length].get(8..).unwrap_or_default().chunks_exact(4);
    let known = brands.find_map(|brand| match brand {
        b"avif" | b"avis" => Some(("avif", "image/avif")),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => Some(("heic", "image/heic")),
        _ => None,
    });
    known.unwrap_or(UNKNOWN)
}

/// XML whose root is `svg`, as far as the first kilobyte tells.
fn is_svg(data: &[u8]) -> bool {
    let head = &data[..data.len().min(1_024)];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts = |with: &[u8]| head.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let root =
        head.windows(5).position(|w| w.starts_with(b"<svg") && matches!(w[4], b' ' | b'\t' | b'\r' | b'\n' | b'>'));
    match root {
        None => false,
        Some(0) => true,
        Some(_) => starts(b"<?xml") || starts(b"<!--") || starts(b"<!doctype svg"),
    }
}

/// `message.images` is a list of base64 texts. What is none stays, and so does an empty list.
fn take_images(whole: &mut Value) -> Vec<Artifact> {
    let mut taken = Vec::new();
    let Some(message) = whole.get_mut("message").and_then(Value::as_object_mut) else { return taken };
    let Some(images) = message.get_mut("images").and_then(Value::as_array_mut) else { return taken };
    images.retain(|image| {
        let Some(data) = image.as_str().and_then(decode) else { return true };
        let (extension, content_type) = sniff(&data);
        let name = format!("image-{}.{extension}", taken.len() + 1);
        taken.push(Artifact { name, content_type: content_type.to_owned(), data });
        false
    });
    if images.is_empty() && !taken.is_empty() {
        message.remove("images");
    }
    taken
}

/// Base64, with line breaks or not, padded or not, behind a `data:…;base64,` or not.
fn decode(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text = text.trim();
    let is_url = text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
    let encoded = if is_url { text.split_once(";base64,")?.1 } else { text };
    let data = if encoded.bytes().any(|b| b.is_ascii_whitespace()) {
        LENIENT.decode(encoded.split_ascii_whitespace().collect::<String>())
    } else {
        LENIENT.decode(encoded)
    };
    data.ok().filter(|data| !data.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    const JPG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0";

    #[test]
    fn the_bytes_tell_what_an_image_is() {
        let bmp = [&b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0"[..], &[40, 0, 0, 0], &[0; 36]].concat();
        for (data, expected) in [
            (PNG, ("png", "image/png")),
            (JPG, ("jpg", "image/jpeg")),
            (b"GIF87a\x01\0", ("gif", "image/gif")),
            (b"GIF89a\x01\0", ("gif", "image/gif")),
            (b"RIFF\x24\0\0\0WEBPVP8 ", ("webp", "image/webp")),
            (&bmp, ("bmp", "image/bmp")),
            (b"II*\0\x08\0\0\0", ("tiff", "image/tiff")),
            (b"MM\0*\0\0\0\x08", ("tiff", "image/tiff")),
            (b"\0\0\x01\0\x01\0\x10\x10", ("ico", "image/vnd.microsoft.icon")),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1miafavif", ("avif", "image/avif")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", ("heic", "image/heic")),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("svg", "image/svg+xml")),
            (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<!-- <x> -->\n<svg>", ("svg", "image/svg+xml")),
            (b"<!DOCTYPE svg PUBLIC 'x'><svg\n>", ("svg", "image/svg+xml")),
        ] {
            assert_eq!(sniff(data), expected, "{data:?}");
        }
    }

    #[test]
    fn what_the_bytes_do_not_tell_is_binary() {
        let mp4 = b"\0\0\0\x14ftypisom\0\0\0\0mp41avif";
        for data in [
            &b""[..],
            b"BM is a text",
            b"RIFF\x24\0\0\0WAVE",
            b"<html><svg ></html>",
            b"<svgx>",
            b"\0\0\x01\0\0\0",
            mp4,
            b"\x89PNG",
            b"ftyp",
            b"\0\0\0\0ftypavif",
            b"%PDF-1.7",
        ] {
            assert_eq!(sniff(data), UNKNOWN, "{data:?}");
        }
    }

    #[test]
    fn images_are_taken_out_and_what_is_none_stays() {
        let split = split_result(json!({
            "model": "m",
            "message": {"role": "assistant", "content": "two", "images": [
                STANDARD.encode(PNG), "not base64!", 7, "",
                format!("data:image/png;base64,{}", STANDARD.encode(JPG)),
                "data:text/plain,abcd",
                "aGVs\nbG8",
            ]},
            "done": true,
        }));
        let message = json!({"role": "assistant", "content": "two",
            "images": ["not base64!", 7, "", "data:text/plain,abcd"]});
        assert_eq!(split.result, json!({"model": "m", "message": message, "done": true}));
        let told: Vec<_> =
            split.artifacts.iter().map(|a| (a.name.as_str(), a.content_type.as_str(), a.data.as_slice())).collect();
        assert_eq!(
            told,
            [
                ("image-1.png", "image/png", PNG),
                ("image-2.jpg", "image/jpeg", JPG),
                ("image-3.bin", "application/octet-stream", b"hello"),
            ]
        );
    }

    #[test]
    fn a_list_that_all_was_taken_from_goes_too() {
        let split = split_result(json!({"message": {"content": "one", "images": [STANDARD.encode(PNG)]}}));
        assert_eq!(split.result, json!({"message": {"content": "one"}}));
        assert_eq!(split.artifacts.len(), 1);
    }

    #[test]
    fn without_images_nothing_is_changed() {
        for whole in [
            json!(null),
            json!([1]),
            json!({"message": "text"}),
            json!({"message": {"content": "x\u{0}"}}),
            json!({"message": {"images": []}}),
            json!({"message": {"images": "aGVsbG8="}}),
            json!({"images": ["aGVsbG8="]}),
        ] {
            assert_eq!(split_result(whole.clone()), Split { result: whole, artifacts: Vec::new() });
        }
    }

    #[test]
    fn a_result_of_one_byte_too_many_becomes_an_artifact() {
        let whole = |bytes: usize| json!({"message": {"content": "x".repeat(bytes - 26), "images": ["aGVsbG8="]}});
        let split = split_result(whole(INLINE_MAX));
        assert_eq!(serde_json::to_vec(&split.result).unwrap().len(), INLINE_MAX);
        assert_eq!(split.artifacts.len(), 1);

        let split = split_result(whole(INLINE_MAX + 1));
        assert_eq!(split.result, json!({"artifact": "result.json", "size": 262_145}));
        let last = split.artifacts.last().unwrap();
        assert_eq!((last.name.as_str(), last.content_type.as_str()), ("result.json", "application/json"));
        assert_eq!((split.artifacts.len(), last.data.len()), (2, 262_145));
        assert!(serde_json::from_slice::<Value>(&last.data).unwrap()["message"]["content"].is_string());
    }

    #[test]
    fn what_is_small_is_shown_and_what_is_large_is_pointed_to() {
        let url = "/jobs/j/artifacts/a";
        assert_eq!(
            view("a", "text/plain", 2, Some(b"a\0"), url),
            json!({"name": "a", "content_type": "text/plain", "size": 2, "data": "a\u{0}"})
        );
        assert_eq!(
            view("a", "image/png", 2, Some(b"\xff\0"), url),
            json!({"name": "a", "content_type": "image/png", "size": 2, "data": "/wA=", "encoding": "base64"})
        );
        let pointed = json!({"name": "a", "content_type": "b", "size": 262_145, "url": url});
        assert_eq!(view("a", "b", 262_145, Some(&vec![b'x'; INLINE_MAX + 1]), url), pointed);
        assert_eq!(view("a", "b", 262_145, None, url), pointed);
        assert!(view("a", "b", INLINE_MAX, Some(&vec![b'x'; INLINE_MAX]), url).get("url").is_none());
        assert_eq!(view("a", "b", 0, Some(b""), url)["data"], "");
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["a", "image-1.png", "...", ".a", "_-.", RESULT_NAME, &"x".repeat(128)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "é", "a\0", "a\n", "a%2e", &"x".repeat(129)] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn an_etag_is_strong_and_says_what_the_bytes_are() {
        assert_eq!(etag(b"abc"), "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_back(data: Vec<u8>) {
            let shown = view("a", "b", data.len(), Some(&data), "/u");
            let shown: Value = serde_json::from_slice(&serde_json::to_vec(&shown).unwrap()).unwrap();
            let text = shown["data"].as_str().unwrap();
            let read = match shown.get("encoding") {
                None => text.as_bytes().to_vec(),
                Some(encoding) => {
                    prop_assert_eq!(encoding, "base64");
                    prop_assert!(std::str::from_utf8(&data).is_err());
                    STANDARD.decode(text).unwrap()
                }
            };
            prop_assert_eq!(read, data);
        }

        #[test]
        fn no_image_is_lost(
            images in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6), padded: bool,
        ) {
            let encode = |data: &Vec<u8>| {
                let text = STANDARD.encode(data);
                if padded { text } else { text.trim_end_matches('=').to_owned() }
            };
            let texts: Vec<String> = images.iter().map(encode).collect();
            let split = split_result(json!({"message": {"images": texts}}));
            prop_assert!(split.artifacts.iter().all(|artifact| is_name(&artifact.name)));
            for (n, artifact) in split.artifacts.iter().enumerate() {
                let expected = format!("image-{}.", n + 1);
                prop_assert!(artifact.name.starts_with(&expected));
            }
            let taken: Vec<_> = split.artifacts.into_iter().map(|artifact| artifact.data).collect();
            prop_assert_eq!(taken, images);
        }

        #[test]
        fn no_text_in_the_place_of_an_image_panics_or_is_lost(
            text in "\\PC{0,12}|(data:[a-z/]{0,5}(;base64)?,)?[A-Za-z0-9+/=]{0,12}",
        ) {
            let split = split_result(json!({"message": {"images": [text.clone()]}}));
            let stayed = split.result["message"].get("images").is_some();
            prop_assert_eq!(stayed, split.artifacts.is_empty());
            prop_assert!(!stayed || split.result["message"]["images"] == json!([text]));
        }

        #[test]
        fn no_bytes_panic(head in proptest::sample::select(vec![
            &b""[..], b"\0\0\0\x18ftyp", b"\xff\xff\xff\xffftyp", b"\0\0\0\x02ftyp", b"BM", b"<?xml", b"<svg",
        ]), tail: Vec<u8>) {
            let (extension, content_type) = sniff(&[head, &tail].concat());
            prop_assert_eq!(extension == "bin", !content_type.starts_with("image/"));
        }
    }
}
