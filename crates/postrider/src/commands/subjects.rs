//! `postrider subjects …`

use url::form_urlencoded::Serializer;

use super::Failure;
use crate::{api::Api, cli::Subjects, output, settings::Settings};

pub(super) async fn run(settings: &Settings, command: Subjects) -> Result<(), Failure> {
    let Subjects::Forget {
        entity,
        id,
        tenant,
        listing,
    } = command;
    // Whatever an id is made of, it is one part of the path.
    let mut path = url::Url::parse("http://none/v1/subjects")
        .map_err(|error| Failure::failed(error.to_string()))?;
    if let Ok(mut parts) = path.path_segments_mut() {
        parts.push(&entity).push(&id);
    }
    let mut path = path.path().to_owned();
    if let Some(tenant) = tenant {
        let query = Serializer::new(String::new())
            .append_pair("tenant", &tenant)
            .finish();
        path = format!("{path}?{query}");
    }
    let api = Api::new(&listing.remote, settings)?;
    output::one(&api.delete(&path).await?, listing.output);
    Ok(())
}
