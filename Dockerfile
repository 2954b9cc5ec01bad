# The job as an image:
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t micronet .
#   docker run --gpus all -v "$PWD/runs:/runs" micronet train
# The locked PyTorch wheel is built for CUDA 13.0 and brings its own CUDA libraries; the host needs a driver of
# 580 or newer. For an older driver give a requirements file with a wheel built for it, and a base to match:
#   --build-arg REQUIREMENTS=requirements-cuda12.lock --build-arg BASE_IMAGE=nvidia/cuda:12.6.3-base-ubuntu24.04
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04

FROM ${BASE_IMAGE} AS python
# A version of Debian's or Ubuntu's package is gone from their mirrors with the next one, so none is named.
# No program needs to change its user. The folders are for whatever user the container is run as.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s '{}' + \
 && mkdir -m 1777 /data /runs

FROM python AS installer
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip

FROM python AS dependencies
ARG REQUIREMENTS=requirements.lock
COPY ${REQUIREMENTS} /opt/venv/requirements.lock
# What nothing here uses is left out, 1.1 GB. Triton would do harm: without a C compiler PyTorch fails in the
# operators that it would have Triton compile, and takes its own kernels where Triton is absent. The others
# are for fastai's language models.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=installer,source=/opt/pip,target=/opt/pip \
    python3 -m venv --without-pip /opt/venv \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --require-hashes -r /opt/venv/requirements.lock \
 && /opt/pip/bin/pip --python /opt/venv/bin/python uninstall --yes triton spacy thinc blis \
 && echo /opt/micronet >"$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/micronet.pth"

FROM installer AS code
COPY LICENSE README.md pyproject.toml /build/
COPY job /build/job
# Podman's COPY changes times, by which Python knows its byte code, unless that is marked as never to be checked.
RUN --mount=type=bind,from=dependencies,source=/opt/venv,target=/opt/venv \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --no-cache-dir \
    --no-compile --target /opt/micronet /build \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/micronet/job

FROM dependencies AS image
# Not by RUN with a mount, since podman's cache does not see that what is mounted has changed.
COPY --from=code /opt/micronet /opt/micronet
COPY --chmod=755 entrypoint.sh /entrypoint.sh

ARG REVISION=""
ARG IMAGE=""
LABEL org.opencontainers.image.title="micronet" \
      org.opencontainers.image.description="Trains, evaluates and scores a small CIFAR-100 network as one batch job" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
# /tmp is what a container with a read-only root file system has; USER is asked for where the user has no name.
# Without the base's own requirement of a driver, one that is too old is refused by the job, which says so.
ENV PATH="/opt/micronet/bin:/opt/venv/bin:${PATH}" \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    USER=micronet \
    NVIDIA_DISABLE_REQUIRE=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MICRONET_REVISION="${REVISION}" \
    MICRONET_IMAGE="${IMAGE}"
# The defaults runs/<fingerprint> and data are then in the folders for them. /runs is no VOLUME: an anonymous one
# would go with the container as the container's own files do, and hide that nothing is mounted there.
WORKDIR /
VOLUME /data
USER 1000:1000
ENTRYPOINT ["/entrypoint.sh"]
CMD ["--help"]
