//! Manifests, as they are read and refused, and that the way back leads back.

use proptest::prelude::*;

use super::*;

fn place() -> Place<'static> {
    Place { project: "p", namespace: Some("projects"), is_open: false }
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn said(object: &Value) -> Vec<String> {
    problems(std::slice::from_ref(object), place())
}

#[test]
fn one_object_a_list_and_text_of_several_documents_are_read() {
    let two = vec![map("a"), map("b")];
    for manifest in [
        json!(two),
        json!({"apiVersion": "v1", "kind": "List", "items": two}),
        json!(format!("---\n{}\n---\n# nothing\n---\n{}\n", two[0], two[1])),
        json!([{"apiVersion": "v1", "kind": "List", "items": [two[0]]}, two[1]]),
    ] {
        assert_eq!(read(&manifest), Ok(two.clone()), "{manifest}");
    }
    assert_eq!(read(&map("a")), Ok(vec![map("a")]));
}

#[test]
fn nothing_and_too_much_are_refused() {
    for (manifest, why) in [
        (json!([]), "at least one"),
        (json!("---\n"), "at least one"),
        (json!("a: ["), "no YAML"),
        (json!(vec![map("a"); OBJECTS_MAX + 1]), "at most 100 objects"),
        (json!({"a": "x".repeat(BYTES_MAX)}), "at most 1048576 bytes"),
    ] {
        let told = read(&manifest).expect_err("it is refused");
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn what_is_no_object_of_the_namespace_is_named() {
    assert_eq!(said(&map("a")), [""; 0]);
    let other = |path: &str, value: Value| {
        let mut object = map("a");
        let (parent, name) = path.rsplit_once('/').expect("a path");
        object.pointer_mut(parent).expect("it is there")[name] = value;
        object
    };
    for (object, why) in [
        (json!(7), "must have a apiVersion"),
        (other("/metadata/name", json!(7)), "must have a metadata.name"),
        (other("/metadata/namespace", json!("default")), "must be in the namespace projects, not in \"default\""),
        (other("/metadata/namespace", json!(7)), "must be in the namespace projects, not in 7"),
        (other("/metadata/labels", json!("no")), "must have an object as metadata.labels"),
        (other("/kind", json!("ClusterRole")), "is in no namespace"),
        (other("/metadata/labels", json!({NAME: "q"})), "must not have the label rdev.orchard9.ai/name"),
        (other("/metadata/labels", json!({PROJECT_ID: "q"})), "must not have the label rdev.orchard9.ai/project-id"),
        (other("/metadata/labels", json!({SESSION_ID: "s"})), "must not have the label rdev.orchard9.ai/session-id"),
    ] {
        let told = said(&object).join("; ");
        assert!(told.contains(why), "{object}: {told}");
    }
    assert_eq!(said(&other("/metadata/namespace", json!("projects"))), [""; 0]);
    assert_eq!(said(&other("/metadata/labels", json!({NAME: "p", PROJECT_ID: "p"}))), [""; 0]);
    assert!(problems(&[map("a"), map("a")], place())[0].ends_with("is given twice"));
}

#[test]
fn pods_of_a_template_take_no_other_projects_place() {
    let pod = |name: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
               "spec": {"template": {"metadata": {"labels": {"rdev.orchard9.ai/project": "true", NAME: name}}}}})
    };
    assert_eq!(said(&pod("p")), [""; 0]);
    assert_eq!(said(&pod("q")).len(), 1);
}

#[test]
fn what_is_not_known_yet_passes_until_it_is() {
    let mut object = map("${vars.name}");
    object["metadata"]["namespace"] = "${vars.where}".into();
    object["metadata"]["labels"] = json!({NAME: "${vars.project}"});
    let two = [object.clone(), object];
    assert_eq!(problems(&two, Place { is_open: true, ..place() }), [""; 0]);
    assert!(problems(&two, place()).len() >= 4);
}

#[test]
fn an_object_is_marked_whatever_it_said() {
    let mut object = map("a");
    object["metadata"]["labels"] = json!({MANAGED_BY: "Helm", "mine": "yes"});
    mark(&mut object, "p", "saga/0");
    assert_eq!(object["metadata"]["labels"], json!({MANAGED_BY: "rdev", PROJECT_ID: "p", "mine": "yes"}));
    assert!(is_marked(&object, "saga/0") && !is_marked(&object, "saga/1") && !is_marked(&map("a"), "saga/0"));
    let mut again = object.clone();
    mark(&mut again, "p", "saga/1");
    assert!(again != object && says_the_same(&again, &object));
    let mut bare = map("a");
    bare["metadata"]["labels"] = object["metadata"]["labels"].clone();
    assert!(says_the_same(&bare, &object) && !says_the_same(&map("a"), &object));
}

#[test]
fn what_the_cluster_writes_is_not_put_back() {
    let mut after = map("a");
    after["metadata"]["resourceVersion"] = "7".into();
    after["status"] = json!({"replicas": 1});
    assert_eq!(way_back(&after, &map("a")), None);
    after["data"] = json!({"a": "2", "b": "3"});
    assert_eq!(way_back(&after, &map("a")), Some(json!({"data": {"a": "1", "b": null}})));
}

/// RFC 7396.
fn patched(target: &Value, patch: &Value) -> Value {
    let Value::Object(members) = patch else { return patch.clone() };
    let mut object = target.as_object().cloned().unwrap_or_default();
    for (name, value) in members {
        if value.is_null() {
            object.remove(name);
        } else {
            let old = object.get(name).cloned().unwrap_or_default();
            object.insert(name.clone(), patched(&old, value));
        }
    }
    Value::Object(object)
}

/// Without nulls, as objects of a cluster are.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn the_way_back_leads_back(before in values(), after in values()) {
        let (before, after) = (json!({"spec": before}), json!({"spec": after}));
        match way_back(&after, &before) {
            None => prop_assert_eq!(before, after),
            Some(patch) => {
                let back = patched(&after, &patch);
                prop_assert_eq!(&back, &before);
                // Twice is as once.
                prop_assert_eq!(&patched(&back, &patch), &before);
            }
        }
    }

    #[test]
    fn whatever_is_sent_is_read_or_refused(text in "[a-z:\\-\\[\\]{}&*\\n ${}]{0,60}") {
        if let Ok(objects) = read(&Value::from(text)) {
            prop_assert!(!objects.is_empty());
            let _said = problems(&objects, place());
        }
    }
}
