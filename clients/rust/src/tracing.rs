//! The trace that a call belongs to, where the feature `opentelemetry` is on.

use tonic::metadata::MetadataMap;

/// What the global propagator writes of the current context; empty without the feature.
pub(crate) fn headers() -> MetadataMap {
    #[allow(unused_mut)] // Without the feature nobody writes.
    let mut headers = MetadataMap::new();
    #[cfg(feature = "opentelemetry")]
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject(&mut carrier::Headers(&mut headers));
    });
    headers
}

#[cfg(feature = "opentelemetry")]
mod carrier {
    use opentelemetry::propagation::Injector;
    use tonic::metadata::{MetadataKey, MetadataMap};

    pub(super) struct Headers<'a>(pub(super) &'a mut MetadataMap);

    impl Injector for Headers<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
                self.0.insert(key, value);
            }
        }
    }
}

#[cfg(all(test, feature = "opentelemetry"))]
mod tests {
    use opentelemetry::propagation::text_map_propagator::FieldIter;
    use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
    use opentelemetry::{Context, global};

    /// W3C's header, as the SDK's propagator writes it; the SDK is no dependency for that alone.
    #[derive(Debug)]
    struct TraceParent;

    impl TextMapPropagator for TraceParent {
        fn inject_context(&self, context: &Context, to: &mut dyn Injector) {
            let span = context.span().span_context().clone();
            let parent = format!("00-{}-{}-01", span.trace_id(), span.span_id());
            to.set("traceparent", parent);
        }

        fn extract_with_context(&self, context: &Context, _: &dyn Extractor) -> Context {
            context.clone()
        }

        fn fields(&self) -> FieldIter<'_> {
            FieldIter::new(&[])
        }
    }

    /// The headers of a call name the span that is current.
    #[test]
    fn the_current_span_goes_out() {
        global::set_text_map_propagator(TraceParent);
        let span = SpanContext::new(
            TraceId::from(0x2a),
            SpanId::from(7),
            TraceFlags::SAMPLED,
            true,
            Default::default(),
        );
        let _current = Context::new().with_remote_span_context(span).attach();
        assert_eq!(
            super::headers().get("traceparent").unwrap(),
            "00-0000000000000000000000000000002a-0000000000000007-01"
        );
    }
}
