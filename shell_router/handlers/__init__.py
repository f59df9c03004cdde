"""HTTP handlers: OpenAI's API (`openai`), `runs`, `health` and `metrics`."""
