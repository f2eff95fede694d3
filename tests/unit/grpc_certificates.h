/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* grpc_certificates: a CA and what it signs, made anew by each run in a directory of its own. */
#include "base.h"

#include <assert.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

struct identity {
        X509 *certificate;
        EVP_PKEY *key;
};

static void identity_extension(X509 *certificate, X509 *issuer, int nid, const char *value) {
        X509V3_CTX context;

        X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
        assert(extension);
        X509_add_ext(certificate, extension, -1);
        X509_EXTENSION_free(extension);
}

/* identity_make() - `issuer` NULL: a self-signed CA. `names` as "DNS:localhost,IP:127.0.0.1", NULL: none. Valid from
 * `from_sec` to `to_sec`, relative to now. */
static struct identity identity_make(const struct identity *issuer, const char *name, const char *names, long from_sec,
                                     long to_sec) {
        struct identity identity = {X509_new(), EVP_EC_gen("P-256")};
        X509_NAME *subject = X509_get_subject_name(identity.certificate);
        X509 *issuer_certificate = issuer ? issuer->certificate : identity.certificate;
        unsigned serial;

        RAND_bytes((unsigned char *)&serial, sizeof(serial));
        X509_set_version(identity.certificate, 2);
        ASN1_INTEGER_set(X509_get_serialNumber(identity.certificate), serial >> 1);
        X509_gmtime_adj(X509_getm_notBefore(identity.certificate), from_sec);
        X509_gmtime_adj(X509_getm_notAfter(identity.certificate), to_sec);
        X509_set_pubkey(identity.certificate, identity.key);
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1, -1, 0);
        X509_set_issuer_name(identity.certificate, X509_get_subject_name(issuer_certificate));
        identity_extension(identity.certificate, issuer_certificate, NID_basic_constraints,
                           issuer ? "critical,CA:FALSE" : "critical,CA:TRUE");
        identity_extension(identity.certificate, issuer_certificate, NID_subject_key_identifier, "hash");
        if (names)
                identity_extension(identity.certificate, issuer_certificate, NID_subject_alt_name, names);
        assert(X509_sign(identity.certificate, issuer ? issuer->key : identity.key, EVP_sha256()) > 0);
        return identity;
}

static void identity_write(const struct identity *identity, const char *certificate_path, const char *key_path) {
        FILE *file = fopen(certificate_path, "we");

        assert(file && PEM_write_X509(file, identity->certificate) == 1 && fclose(file) == 0);
        if (!key_path)
                return;
        file = fopen(key_path, "we");
        assert(file && PEM_write_PrivateKey(file, identity->key, NULL, NULL, 0, NULL, NULL) == 1 && fclose(file) == 0);
}

static void identity_free(struct identity *identity) {
        X509_free(identity->certificate);
        EVP_PKEY_free(identity->key);
}
