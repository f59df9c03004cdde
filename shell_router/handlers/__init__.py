"""HTTP handlers: OpenAI's API (`openai`), `runs` and `watch`, `workers`, `health`, `metrics` and the `page`."""
