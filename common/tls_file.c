/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a certificate file says, without a connection: for people who look before it is too late.
 */
#include "tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

static int read_end(const X509 *certificate, uint64_t *ret_real_usec) {
        struct tm end = {0};

        if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &end) != 1)
                return -EINVAL;
        time_t seconds = timegm(&end);
        *ret_real_usec = seconds > 0 ? (uint64_t)seconds * USEC_PER_SEC : 0;
        return 0;
}

int tls_file_expires(const char *path, uint64_t *ret_real_usec) {
        errno = 0;
        BIO *bio = BIO_new_file(path, "r");
        if (!bio) {
                int r = errno > 0 ? -errno : -ENOMEM;
                ERR_clear_error();
                return r;
        }
        X509 *certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL); /* the first one: the holder's own */
        int r = certificate ? read_end(certificate, ret_real_usec) : -EINVAL;
        X509_free(certificate);
        BIO_free(bio);
        ERR_clear_error(); /* the next connection must not find it */
        return r;
}
