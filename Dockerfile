ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
WORKDIR /src
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/gateway
COPY requirements.txt requirements-build.txt ./
RUN /opt/build/bin/pip install -r requirements-build.txt \
    && /opt/build/bin/pip --python /opt/gateway/bin/python install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# The bytecode is taken as it is, whatever a layer's timestamps say: the running image cannot write it anew.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/build/bin/pip --python /opt/gateway/bin/python install --no-deps --no-index /tmp/wheel/*.whl \
    && /opt/gateway/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/gateway/lib
COPY config /app/config
RUN chmod -R a+rX /app /opt/gateway

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Hybrid Inference Gateway" \
      org.opencontainers.image.description="Weighted routing and failover between local GPU boxes and remote OpenAI-compatible providers, configured live." \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/gateway /opt/gateway
COPY --from=build /app /app
RUN mkdir /app/logs && chown 10001:10001 /app/logs
# A log file is named relative to the working directory: the one folder that is written to.
WORKDIR /app/logs
# No GATEWAY_PORT here: it would win over a platform's PORT.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_CONFIG_DIR=/app/config
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whoever connects to 0.0.0.0 or :: reaches this container.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s CMD ["python3", "-c", "\
import http.client, os; \
port = os.environ.get('GATEWAY_PORT') or os.environ.get('PORT') or '8080'; \
gateway = http.client.HTTPConnection((os.environ.get('GATEWAY_HOST') or '127.0.0.1').split(',')[0], int(port), timeout=4); \
gateway.request('GET', '/health/ready'); \
raise SystemExit(gateway.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
