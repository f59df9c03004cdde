"""HTTP handlers: OpenAI's API (`openai`), run records (`runs`, `cancel`), `health` and `metrics`."""
