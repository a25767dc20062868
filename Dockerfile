# `fedrec serve` over one merchant's folder, as a user without rights, on a root that nothing can write to. docs/serve.md says how
# to run it. `--build-arg PIP_EXTRA_INDEX_URL=...` takes torch from an index that has it without CUDA.

FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fedrec fedrec
COPY server server
COPY clients clients
COPY simulations simulations
RUN python -m venv /opt/fedrec \
    && /opt/fedrec/bin/pip install --no-cache-dir --constraint constraints.txt '.[demo,serve]'

FROM python:3.11-slim
COPY --from=build /opt/fedrec /opt/fedrec
# What is written besides the merchant's folder and the keys is gone with the container.
ENV PATH=/opt/fedrec/bin:$PATH HOME=/tmp FEDREC_CACHE=/tmp/fedrec PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
# It loads the model first, and answers 503 until that is done.
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["fedrec", "serve", "/merchant", "--host", "0.0.0.0", "--port", "8000", "--key-file", "/keys/keys.toml"]
