# The job as an image:
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t micronet .
#   docker run --gpus all -v "$PWD/runs:/runs" micronet train
# The locked PyTorch wheel is built for CUDA 13.0 and brings its own CUDA libraries; the README has the drivers.
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

FROM python AS compiler
# For --compile: inductor's C++, triton's C, Python's headers. What only link-time optimisation, the sanitizers
# and a static Python use is removed.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev libpython3-dev \
 && rm -rf /var/lib/apt/lists/* /usr/bin/*-lto-dump* /usr/lib/gcc/*/*/lto1 /usr/lib/gcc/*/*/lib?san.a \
      /usr/lib/*/lib?san.so* /usr/lib/*/libubsan.so* /usr/lib/python3*/config-*/*.a \
 && find / -xdev -type f -perm /6000 -exec chmod a-s '{}' +

FROM compiler AS installer
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip

FROM installer AS installed
ARG REQUIREMENTS=requirements.lock
COPY ${REQUIREMENTS} /opt/requirements.lock
# Removed are packages for fastai's language models, libraries that no other names as needed and nothing here
# loads, and the symbols of triton. Byte code goes by no file's time, which a copy may change. Then each large
# part moves to a folder of its own.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --require-hashes --no-compile -r /opt/requirements.lock \
 && /opt/pip/bin/pip --python /opt/venv/bin/python uninstall --yes spacy thinc blis \
 && site=$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])') \
 && echo /opt/micronet >"$site/micronet.pth" \
 && rm -rf "$site"/nvidia/*/lib/libcusolverMg.* "$site"/nvidia/*/lib/libnvrtc*.alt.* "$site"/nvidia/*/lib/libnvperf_* \
      "$site"/nvidia/nvshmem/lib/libnvshmem_device.* "$site"/nvidia/nvshmem/lib/nvshmem_transport_* "$site"/torch/bin/protoc* \
      "$site"/triton/backends/nvidia/lib/cupti* "$site"/triton/_C/libproton.so \
 && find "$site" -name libtriton.so -exec strip --strip-unneeded '{}' + \
 && /opt/venv/bin/python -m compileall -q -j 0 -x torch/testing --invalidation-mode unchecked-hash "$site" \
 && number=0 \
 && for part in nvidia/cudnn 'nvidia/cu*/lib/libcublas*' 'nvidia/cu[0-9]*' nvidia torch triton; do \
      number=$((number + 1)); \
      for found in "$site"/$part; do \
        folder=/layers/$number/$(dirname "$found"); mkdir -p "$folder"; \
        if [ -e "$found" ]; then mv "$found" "$folder"; fi; \
      done; \
    done \
 && mkdir -p /layers/7/opt && mv /opt/venv /layers/7/opt

FROM compiler AS dependencies
# One layer each: they are pulled side by side, and stay where only the code changes.
COPY --from=installed /layers/1/ /
COPY --from=installed /layers/2/ /
COPY --from=installed /layers/3/ /
COPY --from=installed /layers/4/ /
COPY --from=installed /layers/5/ /
COPY --from=installed /layers/6/ /
COPY --from=installed /layers/7/ /

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
# NVIDIA_DISABLE_REQUIRE: the job itself reports a driver that is too old.
# Hosts without NVIDIA's toolkit mount the driver's libraries at /usr/local/nvidia. PyTorch would compile a few
# operators with triton that it has kernels for; only --compile is to.
ENV PATH="/opt/micronet/bin:/opt/venv/bin:${PATH}" \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    USER=micronet \
    MICRONET_CACHE=/data \
    NVIDIA_DISABLE_REQUIRE=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    TORCH_DISABLE_NATIVE_JIT=1 \
    MICRONET_REVISION="${REVISION}" \
    MICRONET_IMAGE="${IMAGE}"
# The default runs/<fingerprint> is then in the folder for it. /runs is no VOLUME: an anonymous one
# would go with the container as the container's own files do, and hide that nothing is mounted there.
WORKDIR /
VOLUME /data
USER 1000:1000
ENTRYPOINT ["/entrypoint.sh"]
CMD ["--help"]
