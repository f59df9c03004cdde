"""What SGLang's CPU engine lacks for prefill-decode disaggregation. Active on CPU engines only."""
