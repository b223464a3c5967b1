data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.region

  # A model that lies in a bucket of the site's own: its bucket and prefix.
  other_models = var.model_uri == null ? [] : [regex("^s3://([^/]+)/+(.*?)/*$", var.model_uri)]
}

# One key for everything that is stored: whoever may read it is written in one place.
resource "aws_kms_key" "data" {
  description             = "Models, pictures, database, cache, secrets and images of ${var.cluster_name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TheAccountGoverns"
      Effect    = "Allow"
      Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })
}

# --- what the pods of ServiceAccount mezzotint may do ---

resource "aws_iam_role" "service" {
  name_prefix = "${var.cluster_name}-service-"
  description = "Pods of ServiceAccount mezzotint: read models, read and write pictures"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:RequestTag/eks-cluster-name"           = var.cluster_name
          "aws:RequestTag/kubernetes-namespace"       = "mezzotint"
          "aws:RequestTag/kubernetes-service-account" = "mezzotint"
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "service" {
  name = "models-and-pictures"
  role = aws_iam_role.service.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ListModels"
        Effect   = "Allow"
        Action   = "s3:ListBucket"
        Resource = concat([aws_s3_bucket.this["models"].arn], [for place in local.other_models : "arn:${local.partition}:s3:::${place[0]}"])
      },
      {
        Sid      = "ReadModels"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = concat(["${aws_s3_bucket.this["models"].arn}/*"], [for place in local.other_models : "arn:${local.partition}:s3:::${join("/", place)}/*"])
      },
      # Without a condition on the prefix: where listing is not allowed, S3 says 403 for a picture that is gone, not 404.
      {
        Sid      = "ListPictures"
        Effect   = "Allow"
        Action   = "s3:ListBucket"
        Resource = aws_s3_bucket.this["pictures"].arn
      },
      {
        Sid      = "ReadAndWritePictures"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = "${aws_s3_bucket.this["pictures"].arn}/${local.picture_prefix}/*"
      },
      {
        Sid       = "OpenAndSeal"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = aws_kms_key.data.arn
        Condition = { StringEquals = { "kms:ViaService" = "s3.${local.region}.${data.aws_partition.current.dns_suffix}" } }
      },
    ]
  })
}

resource "aws_eks_pod_identity_association" "service" {
  # The name out of the ARN: this waits for the cluster, and the stores, which take as long to make, do not.
  cluster_name    = basename(var.cluster_arn)
  namespace       = "mezzotint"
  service_account = "mezzotint"
  role_arn        = aws_iam_role.service.arn
}
