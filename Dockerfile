# Latchkey's image: Node, the built service and its production dependencies. Every command of `latchkey` is in it:
# `docker run … latchkey migrate`. It needs a Postgres of one's own; docker-compose.yml has one.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
# No package's own scripts are run in any stage: argon2 brings its binary along, and the rest needs none.
RUN npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json ./
COPY migrations migrations
COPY src src
# Types and maps are for development, and the stamp is for the next build.
RUN npm run build && find dist -type f \( -name '*.d.ts' -o -name '*.map' -o -name .built \) -delete

# Left out as optional: the programs of the embedded Postgres, 60 MB that a container has no use for. Without
# DATABASE_URL `serve` says so and ends, and `try` says that they are missing.
FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --omit=dev --omit=optional && \
  find node_modules -type f \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete && \
  rm -rf node_modules/[!@]*/test node_modules/[!@]*/tests node_modules/@*/*/test node_modules/@*/*/tests

FROM node:24-slim
ENV NODE_ENV=production HOST=0.0.0.0 PORT=8080
WORKDIR /app
COPY package.json LICENSE ./
COPY openapi openapi
COPY --from=dependencies /app/node_modules node_modules
COPY --from=build /app/dist dist
# The account `node` of the base image, by number, because Kubernetes can check only a number against runAsNonRoot.
# /app belongs to root, so the service cannot change its own program.
USER 1000:1000
EXPOSE 8080
# Liveness, not readiness: a restart does not repair a database.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/livez`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "--min-semi-space-size=16", "--heap-growing-percent=100", "dist/src/cli/latchkey.js"]
CMD ["serve"]
